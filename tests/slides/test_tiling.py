"""Tiles are on a regular grid inside the slide, and the tile table describes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stainssl.errors import SlideError, Status
from stainssl.slides import tiling
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_thumbnail
from stainssl.slides.tiling import (
    REASONS,
    TileLimits,
    area_shares,
    counts,
    grid,
    reasons,
    tile_table,
)
from stainssl.slides.tissue import TissueMap, tissue_map
from tests.slides.conftest import stained

MPPS = st.floats(0.1, 2.0)


@given(
    bounds=st.tuples(*[st.integers(0, 500)] * 2, *[st.integers(1, 5000)] * 2),
    slide_mpp=MPPS,
    mpp=MPPS,
    size=st.integers(1, 512),
    data=st.data(),
)
def test_the_grid_is_regular_and_inside_the_slide(
    bounds: tuple[int, int, int, int], slide_mpp: float, mpp: float, size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    stride = (size - overlap) * mpp / slide_mpp
    side = size * mpp / slide_mpp
    assume(stride >= 1 and max(bounds[2:]) / stride < 300)
    if side > min(bounds[2:]):
        with pytest.raises(SlideError) as caught:
            grid(bounds, slide_mpp, mpp, size, overlap)
        assert caught.value.status is Status.TOO_SMALL
        return
    found = grid(bounds, slide_mpp, mpp, size, overlap)
    assert found.side_level0_px == pytest.approx(side)
    for starts, low, length in (
        (found.x_level0_px, bounds[0], bounds[2]),
        (found.y_level0_px, bounds[1], bounds[3]),
    ):
        assert starts[0] == low
        assert starts[-1] + side <= low + length + 1e-3 * stride
        assert np.all(np.diff(starts) >= np.floor(stride))
        assert np.abs(starts - low - np.arange(len(starts)) * stride).max() < 1  # no drift
        assert starts[-1] + stride + side > low + length - 1  # none is missing at the end
    x, y = found.corners()
    assert len(found) == len(x) == len(set(zip(x.tolist(), y.tolist(), strict=True)))


def test_a_slide_of_exactly_one_tile_has_one() -> None:
    assert len(grid((0, 0, 256, 256), 0.5, 0.5, 256)) == 1
    assert len(grid((0, 0, 512, 256), 0.5, 0.5, 256)) == 2
    assert len(grid((0, 0, 511, 256), 0.5, 0.5, 256)) == 1


@pytest.mark.parametrize("bounds", [(0, 0, 1, 1), (0, 0, 1, 100_000), (0, 0, 100_000, 1)])
def test_a_slide_smaller_than_a_tile_is_too_small(bounds: tuple[int, int, int, int]) -> None:
    with pytest.raises(SlideError, match="needs 256") as caught:
        grid(bounds, 0.5, 0.5, 256)
    assert caught.value.status is Status.TOO_SMALL


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (-1, 0), (10, 10), (10, 11), (10, -1)])
def test_an_invalid_size_or_overlap_is_refused(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        grid((0, 0, 100, 100), 0.5, 0.5, size, overlap)


@given(st.floats(0, 15), st.floats(0, 15), st.floats(0.2, 20), st.integers(0, 2**32))
def test_area_shares_are_exact(x: float, y: float, side: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((16, 18)) > 0.5

    def overlap(start: float, stop: float, length: int) -> np.ndarray:
        cell = np.arange(length)
        return np.clip(np.minimum(cell + 1, stop) - np.maximum(cell, start), 0, None)

    weight = np.outer(overlap(y, y + side, 16), overlap(x, x + side, 18))
    share = area_shares(mask, np.array([[x, y, x + side, y + side]]))[0]
    assert share == pytest.approx((weight * mask).sum() / side**2, abs=1e-6)


def table(
    path: Path, limits: TileLimits, size: int = 128, overlap: int = 0
) -> tuple[pd.DataFrame, int]:
    with open_slide(path) as slide:
        squares = grid(slide.bounds_level0_px, 0.5, 0.5, size, overlap)
        tissue = tissue_map(read_thumbnail(slide, 4.0, 0.5), 4.0, 5_000, 5_000)
        return tile_table(slide, 0.5, squares, tissue, limits), len(squares)


def test_the_tile_table_agrees_with_the_truth_and_counts_every_position(
    svs: Callable[..., Path], rng: np.random.Generator
) -> None:
    image, inside = stained(rng, (768, 1024))
    tiles, positions = table(svs(image=image), TileLimits(min_tissue=0.5))
    assert positions == 6 * 8
    assert (tiles["side"] == 128).all()
    assert tiles["tile"].is_monotonic_increasing
    truth = [inside[y : y + 128, x : x + 128].mean() for x, y in zip(tiles.x, tiles.y, strict=True)]
    assert np.abs(tiles["tissue"] - truth).max() < 0.1
    assert (tiles["kept"] == (tiles["tissue"] >= 0.5)).all()
    assert set(tiles.loc[~tiles["kept"], "reason"]) == {"tissue"}
    found = counts(tiles, positions)
    assert sum(found.values()) == positions
    assert set(found) == {"kept", *REASONS, "background"}
    assert found["background"] > 0


def test_quality_does_not_depend_on_the_block_size(
    svs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = svs()
    whole, _ = table(path, TileLimits())
    monkeypatch.setattr(tiling, "READ_PX", 150)
    parts, _ = table(path, TileLimits())
    for name in ("saturation", "od"):
        assert parts[name].to_numpy() == pytest.approx(whole[name].to_numpy(), abs=0.01)
    assert parts["sharpness"].to_numpy() == pytest.approx(
        whole["sharpness"].to_numpy(), rel=0.01, nan_ok=True
    )


def test_an_out_of_focus_band_is_less_sharp(
    svs: Callable[..., Path], rng: np.random.Generator
) -> None:
    grey = cv2.GaussianBlur(rng.standard_normal((768, 768)).astype(np.float32), (0, 0), 2)
    image = 150 + 40 * grey[..., None] / grey.std() * np.array([0.6, 1.0, 0.5])
    image = np.clip(image - [0, 60, 20], 0, 255).astype(np.uint8)
    image[256:512] = cv2.GaussianBlur(image, (0, 0), 6)[256:512]
    tiles, _ = table(svs(image=image), TileLimits(min_tissue=0.0), size=256)
    middle = tiles["y"] == 256
    assert tiles.loc[middle, "sharpness"].max() < 0.5 * tiles.loc[~middle, "sharpness"].min()


def test_reasons_have_an_order_and_no_limit_gives_none() -> None:
    tiles = pd.DataFrame(
        {
            "tissue": [0.9, 0.1, 0.1, 0.9, 0.9, 0.9],
            "pen": [0.0, 0.0, 0.9, 0.0, 0.0, 0.0],
            "sharpness": [1.0, 1.0, 1.0, 0.1, 1.0, np.nan],
            "saturation": [0.5, 0.5, 0.5, 0.01, 0.01, 0.5],
        }
    )
    strict = TileLimits(0.5, max_pen=0.5, min_sharpness=0.5, min_saturation=0.1)
    assert reasons(tiles, strict).tolist() == ["", "tissue", "pen", "blur", "pale", ""]
    assert reasons(tiles, TileLimits(0.0)).tolist() == [""] * 6


def test_a_slide_without_tissue_has_an_empty_table(svs: Callable[..., Path]) -> None:
    with open_slide(svs()) as slide:
        nothing = np.zeros((96, 128), bool)
        tissue = TissueMap(nothing, nothing, 4.0, np.full(3, 255, np.float32))
        tiles = tile_table(slide, 0.5, grid((0, 0, 1024, 768), 0.5, 0.5, 128), tissue, TileLimits())
    assert list(tiles.columns) == list(tiling.COLUMNS)
    assert len(tiles) == 0
