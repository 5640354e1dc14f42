"""Deep-zoom pyramids of slides: which pictures there are, and the pixels of one.

Planes: level-0 px of the slide; the same less the corner of the slide's bounds (image px), which is
what the page counts in; and the px of a zoom level. Zoom level `deepest` has image px, every level
above it half as many a side, level 0 is one px.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stainssl.slides.scale import blocks, level_for, read_rectangle
from stainssl.slides.slide import Slide

# Side of what is read at once. Every thread keeps the memory that it once took, so it is small.
READ_PX = 512
TILE_PX = 256  # side of a picture; whole tiles of the usual slide are decoded straight


@dataclass(frozen=True)
class Pyramid:
    """The geometry of a slide's deep-zoom pyramid.

    Attributes:
        left_level0_px, top_level0_px: the corner of the slide's bounds.
        width_px, height_px: of the bounds, in image px.
    """

    left_level0_px: int
    top_level0_px: int
    width_px: int
    height_px: int

    @classmethod
    def of(cls, slide: Slide) -> Pyramid:
        """The pyramid over what was scanned of an open slide."""
        return cls(*slide.bounds_level0_px)

    @property
    def deepest(self) -> int:
        """The zoom level of image px."""
        return max(0, math.ceil(math.log2(max(self.width_px, self.height_px, 1))))

    def size_px(self, level: int) -> tuple[int, int]:
        """Width and height of a zoom level."""
        image_px_per_px = 2 ** (self.deepest - level)
        return -(-self.width_px // image_px_per_px), -(-self.height_px // image_px_per_px)

    def has(self, level: int, column: int, row: int) -> bool:
        """Whether there is such a picture."""
        if not 0 <= level <= self.deepest or column < 0 or row < 0:
            return False
        width, height = self.size_px(level)
        return column * TILE_PX < width and row * TILE_PX < height

    def pictures(self, level: int) -> tuple[int, int]:
        """Columns and rows of pictures of a zoom level."""
        width, height = self.size_px(level)
        return -(-width // TILE_PX), -(-height // TILE_PX)


def read_pyramid_picture(
    slide: Slide, pyramid: Pyramid, level: int, column: int, row: int
) -> np.ndarray:
    """One picture of a slide's pyramid, read in blocks of bounded memory.

    Args:
        slide: an open slide.
        pyramid: its own.
        level, column, row: a picture that `pyramid` has.

    Returns:
        (h, w, 3) uint8 RGB, 256 px a side, less at the right and lower edge.

    Raises:
        SlideError, OSError: as `Slide.read_region`.
    """
    ratio = 2 ** (pyramid.deepest - level)  # level-0 px in a px
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
    """The whole slide, no side longer than `most_px`: (h, w, 3) uint8 RGB.

    It is the largest zoom level that fits, so that no pixel is resampled twice.
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
