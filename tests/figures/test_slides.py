"""Previews of slides: thumbnail, tissue, tiles, title and legend."""

from __future__ import annotations

import numpy as np
import pandas as pd
from PIL import Image

from stainssl.figures.slides import DROPPED, HEAD_PX, INK, KEPT, MARGIN_PX, OUTLINE, preview

GLASS = (240, 241, 242)


def example(side_level0_px: float, title: str = "a: ok", has_ink: bool = False) -> Image.Image:
    """Preview of a slide of 480 px at 8 µm/px with a square of tissue and three tiles."""
    thumbnail = np.full((240, 480, 3), GLASS, np.uint8)
    tissue, ink = np.zeros((2, 240, 480), bool)
    tissue[100:140, 200:260] = True
    ink[20:30, 20:30] = has_ink
    # At x = 210 and 300 px of the mask, and beyond its right edge.
    tiles = pd.DataFrame({"x": [3360, 4800, 7680], "y": 1760, "side": side_level0_px})
    tiles["kept"] = [True, False, False]
    return preview(thumbnail, tissue, ink, 8.0, tiles, 0.5, (0, 0), title)


def panels(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The two images, (240, 480, 3) each."""
    image = np.asarray(picture)[HEAD_PX : HEAD_PX + 240]
    return image[:, MARGIN_PX : MARGIN_PX + 480], image[:, 2 * MARGIN_PX + 480 :][:, :480]


def test_the_slide_is_shown_beside_its_tissue_and_tiles() -> None:
    plain, marked = panels(example(480.0))
    assert (plain == GLASS).all()
    assert (marked[100, 215:255] == OUTLINE).all()
    assert (marked[111, 212:238] == KEPT).all()  # the upper edge of a tile of 30 px
    assert (marked[111, 302:328] == DROPPED).all()


def test_tiles_too_small_for_a_square_are_dots() -> None:
    _, marked = panels(example(48.0))
    found = {color: (marked == color).all(axis=2) for color in (KEPT, DROPPED)}
    assert [int(mask.sum()) for mask in found.values()] == [5, 5]
    assert found[KEPT][111, 211]
    assert found[DROPPED][111, 301]


def test_a_long_title_widens_the_preview() -> None:
    short, long = example(480.0), example(480.0, "a: " + "much to say " * 20)
    assert long.width > short.width == 3 * MARGIN_PX + 2 * 480
    assert long.height == short.height
    assert (np.asarray(long)[:HEAD_PX, -MARGIN_PX:] == 255).all()  # the title ends before the edge
    assert (np.asarray(long)[:HEAD_PX, -4 * MARGIN_PX :] < 255).any()


def test_the_legend_has_ink_only_if_there_is_any() -> None:
    below = [np.asarray(example(480.0, has_ink=ink))[HEAD_PX + 240 :] for ink in (False, True)]
    has_ink = [bool((image == INK).all(axis=2).any()) for image in below]
    assert has_ink == [False, True]
