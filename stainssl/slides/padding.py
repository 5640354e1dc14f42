"""Padding of regions beyond the edge of a level, for libraries that read only inside it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Read = Callable[[int, int, int, int], np.ndarray]


def read_padded(
    read: Read, corner: tuple[int, int], size_px: tuple[int, int], level_px: tuple[int, int]
) -> np.ndarray:
    """Read a rectangle of a level; white outside the level.

    Args:
        read: function of x, y, width and height, all inside the level, that returns (h, w, 3 or
            more) uint8.
        corner: x, y of the rectangle in level px; may be negative.
        size_px: width and height of the rectangle.
        level_px: width and height of the level.

    Returns:
        (h, w, 3) uint8, the first three channels.

    Raises:
        ValueError: `read` returned another size or dtype.
    """
    out = np.full((size_px[1], size_px[0], 3), 255, np.uint8)
    x0, y0 = max(0, corner[0]), max(0, corner[1])
    x1 = min(level_px[0], corner[0] + size_px[0])
    y1 = min(level_px[1], corner[1] + size_px[1])
    if x1 <= x0 or y1 <= y0:
        return out
    part = read(x0, y0, x1 - x0, y1 - y0)
    if part.dtype != np.uint8 or part.shape[:2] != (y1 - y0, x1 - x0):
        wanted = y1 - y0, x1 - x0
        raise ValueError(f"read {part.shape} {part.dtype} instead of {wanted}")
    left, top = x0 - corner[0], y0 - corner[1]
    out[top : top + y1 - y0, left : left + x1 - x0] = part[..., :3]
    return out
