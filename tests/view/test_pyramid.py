"""Geometry of deep-zoom pyramids, and the pixels of their pictures."""

from __future__ import annotations

from contextlib import closing

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stainssl.slides.readers import open_slide
from stainssl.view.pyramid import TILE_PX, Pyramid, read_overview, read_pyramid_picture
from tests.stages.trained import Trained

sides = st.integers(1, 150_000)


@given(sides, sides)
def test_pictures_cover_every_level(width: int, height: int) -> None:
    pyramid = Pyramid(0, 0, width, height)
    assert pyramid.size_px(pyramid.deepest) == (width, height)
    assert pyramid.size_px(0) == (1, 1)
    for level in range(pyramid.deepest + 1):
        columns, rows = pyramid.pictures(level)
        w, h = pyramid.size_px(level)
        assert (columns - 1) * TILE_PX < w <= columns * TILE_PX
        assert (rows - 1) * TILE_PX < h <= rows * TILE_PX
        assert pyramid.has(level, columns - 1, rows - 1)
        assert not pyramid.has(level, columns, 0)
        assert not pyramid.has(level, 0, rows)


@given(st.integers(-2, 13), st.integers(-2, 6), st.integers(-2, 6))
def test_only_existing_pictures_are_in_the_pyramid(level: int, column: int, row: int) -> None:
    width, height = 1000, 700
    pyramid = Pyramid(0, 0, width, height)
    px = TILE_PX * 2.0 ** (pyramid.deepest - level)  # level-0 px per picture
    exists = 0 <= level <= pyramid.deepest and 0 <= column * px < width and 0 <= row * px < height
    assert pyramid.has(level, column, row) == exists


def test_the_deepest_level_has_the_pixels_of_the_slide(shown: Trained) -> None:
    path = shown.root / shown.sheet["path"].iloc[0]
    with closing(open_slide(path)) as slide:
        pyramid = Pyramid.of(slide)
        x, y, width, height = slide.bounds_level0_px
        whole = slide.read_region(x, y, 0, (width, height))
        columns, rows = pyramid.pictures(pyramid.deepest)
        strips = [
            np.hstack(
                [
                    read_pyramid_picture(slide, pyramid, pyramid.deepest, c, r)
                    for c in range(columns)
                ]
            )
            for r in range(rows)
        ]
        assert np.array_equal(np.vstack(strips), whole)


def test_upper_levels_are_means_of_the_slide(shown: Trained) -> None:
    path = shown.root / shown.sheet["path"].iloc[0]
    with closing(open_slide(path)) as slide:
        pyramid = Pyramid.of(slide)
        _, _, width, height = slide.bounds_level0_px
        whole = slide.read_region(0, 0, 0, (width, height)).astype(float)
        small = read_overview(slide, pyramid, 128)
        step = width // small.shape[1]
        means = whole.reshape(small.shape[0], step, small.shape[1], step, 3).mean((1, 3))
        # The slide stores its coarser level as a separate JPEG, so single pixels differ.
        assert np.abs(means - small).mean() < 6
        assert np.abs((means - small).mean((0, 1))).max() < 1
