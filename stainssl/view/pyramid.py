"""Deep-zoom pyramids of slides: geometry, and the pixels of each picture.

Coordinate planes: level-0 px of the slide; image px, which are level-0 px relative to the corner of
the slide's bounds and are used by the page; and px of a zoom level. Zoom level `deepest` is in
image px, each level above it has half as many px per side, and level 0 is one px.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stainssl.slides.scale import blocks, level_for, read_rectangle
from stainssl.slides.slide import Slide

# Side of a block that is read at once. Small, because a thread keeps the memory it has allocated.
READ_PX = 512
TILE_PX = 256  # side of a picture; a common tile size of slides, so that whole tiles are decoded


@dataclass(frozen=True)
class Pyramid:
    """Geometry of a slide's deep-zoom pyramid.

    Attributes:
        left_level0_px, top_level0_px: top left corner of the slide's bounds.
        width_px, height_px: size of the bounds, in image px.
    """

    left_level0_px: int
    top_level0_px: int
    width_px: int
    height_px: int

    @classmethod
    def of(cls, slide: Slide) -> Pyramid:
        """Return the pyramid of the scanned area of an open slide."""
        return cls(*slide.bounds_level0_px)

    @property
    def deepest(self) -> int:
        """The zoom level in image px, which is the largest."""
        return max(0, math.ceil(math.log2(max(self.width_px, self.height_px, 1))))

    def size_px(self, level: int) -> tuple[int, int]:
        """Return the width and height of a zoom level, in its px."""
        image_px_per_px = 2 ** (self.deepest - level)
        return -(-self.width_px // image_px_per_px), -(-self.height_px // image_px_per_px)

    def has(self, level: int, column: int, row: int) -> bool:
        """Whether the pyramid has this picture."""
        if not 0 <= level <= self.deepest or column < 0 or row < 0:
            return False
        width, height = self.size_px(level)
        return column * TILE_PX < width and row * TILE_PX < height

    def pictures(self, level: int) -> tuple[int, int]:
        """Return the numbers of columns and rows of pictures at a zoom level."""
        width, height = self.size_px(level)
        return -(-width // TILE_PX), -(-height // TILE_PX)


def read_pyramid_picture(
    slide: Slide, pyramid: Pyramid, level: int, column: int, row: int
) -> np.ndarray:
    """Read one picture of a slide's pyramid, in blocks to bound memory.

    Args:
        slide: an open slide.
        pyramid: pyramid of the slide.
        level, column, row: picture for which `pyramid.has` is true.

    Returns:
        (h, w, 3) uint8 RGB, 256 px per side, less at the right and lower edge.

    Raises:
        SlideError, OSError: as `Slide.read_region`.
    """
    ratio = 2 ** (pyramid.deepest - level)  # level-0 px per px of the zoom level
    width, height = pyramid.size_px(level)
    left, top = column * TILE_PX, row * TILE_PX
    size_px = min(TILE_PX, width - left), min(TILE_PX, height - top)
    source = slide.downsamples[level_for(slide.downsamples, ratio)]
    block_px = max(1, math.floor(READ_PX * source / ratio))
    out = np.empty((size_px[1], size_px[0], 3), np.uint8)
    for rows, columns in blocks(size_px, block_px):
        block = columns.stop - columns.start, rows.stop - rows.start
        out[rows, columns] = read_rectangle(
            slide,
            pyramid.left_level0_px + (left + columns.start) * ratio,
            pyramid.top_level0_px + (top + rows.start) * ratio,
            (block[0] * ratio, block[1] * ratio),
            block,
        )
    return out


def read_overview(slide: Slide, pyramid: Pyramid, most_px: int) -> np.ndarray:
    """Read the whole slide at the largest zoom level with no side longer than `most_px`.

    Returns:
        (h, w, 3) uint8 RGB; no pixel is resampled twice.
    """
    level = max(n for n in range(pyramid.deepest + 1) if max(pyramid.size_px(n)) <= most_px)
    columns, rows = pyramid.pictures(level)
    lines = [
        np.hstack(
            [read_pyramid_picture(slide, pyramid, level, column, row) for column in range(columns)]
        )
        for row in range(rows)
    ]
    return np.vstack(lines)
