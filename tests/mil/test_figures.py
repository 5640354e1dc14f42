"""Figures of attention: overlay on the thumbnail, and strip of tiles."""

from __future__ import annotations

import numpy as np
import pytest

from stainssl.figures.mil import attention_overlay, tile_strip


def test_overlay_has_one_square_per_tile_on_a_fixed_scale(rng):
    thumbnail = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    x, y = np.array([0.0, 20.0, 40.0]), np.array([0.0, 0.0, 20.0])
    figure = attention_overlay(thumbnail, x, y, 20.0, np.array([0.3, 0.6, 1.0]), "slide s1")
    squares = figure.axes[1].collections[0]
    assert len(squares.get_paths()) == 3
    assert squares.get_clim() == (0, 1)
    figure.canvas.draw()


@pytest.mark.parametrize(("top", "bottom"), [(4, 4), (1, 3), (2, 0)])
def test_strip_shows_all_given_tiles(rng, top, bottom):
    tiles = rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    figure = tile_strip(tiles[:top], [0.9] * top, tiles[:bottom], [0.1] * bottom, "slide s1")
    assert sum(len(axes.images) for axes in figure.axes) == top + bottom
    figure.canvas.draw()
