"""Lengths are preserved when a slide is read, at any scale and from any pyramid."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainssl.errors import SlideError, Status
from stainssl.slides import scale
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import (
    level_for,
    read_rectangle,
    read_square,
    read_thumbnail,
    resample,
    resolve_mpp,
)
from stainssl.slides.slide import Slide


class Metadata:
    """A slide's metadata on its pixel size."""

    def __init__(self, **sources: float) -> None:
        self.anisotropy = sources.pop("anisotropy", 1.0)
        self.mpp_sources = {name.replace("_", "-"): value for name, value in sources.items()}


def test_pixel_size_is_taken_from_the_sheet_first_then_from_the_slide() -> None:
    slide = Metadata(format=0.5, objective_power=0.5)
    assert resolve_mpp(None, slide) == (0.5, "format", "")  # type: ignore[arg-type]
    assert resolve_mpp(float("nan"), slide)[1] == "format"  # type: ignore[arg-type]
    assert resolve_mpp(0.52, slide) == (0.52, "sheet", "")  # type: ignore[arg-type]


def test_sources_that_differ_by_more_than_a_tenth_are_reported() -> None:
    slide = Metadata(format=0.25, tiff_resolution=0.26, objective_power=0.5)
    mpp, source, detail = resolve_mpp(None, slide)  # type: ignore[arg-type]
    assert (mpp, source) == (0.25, "format")
    assert detail == "Pixel size 0.25 µm/px taken from format; objective-power says 0.5."


@pytest.mark.parametrize("mpp", [0.005, 0.0499, 50.1, 500, -1])
def test_an_absurd_pixel_size_is_refused_unless_the_sheet_corrects_it(mpp: float) -> None:
    slide = Metadata(format=mpp)
    with pytest.raises(SlideError, match="sheet") as caught:
        resolve_mpp(None, slide)  # type: ignore[arg-type]
    assert caught.value.status is Status.ABSURD_MPP
    assert resolve_mpp(0.25, slide)[:2] == (0.25, "sheet")  # type: ignore[arg-type]
    with pytest.raises(SlideError):
        resolve_mpp(mpp, Metadata(format=0.25))  # type: ignore[arg-type]


def test_a_missing_pixel_size_gives_a_status() -> None:
    with pytest.raises(SlideError, match="column mpp") as caught:
        resolve_mpp(None, Metadata())  # type: ignore[arg-type]
    assert caught.value.status is Status.NO_MPP


@pytest.mark.parametrize(
    ("ratio", "level"), [(0.5, 0), (1, 0), (3.9, 0), (4, 1), (15, 1), (16, 2), (100, 2)]
)
def test_the_nearest_finer_level_is_read(ratio: float, level: int) -> None:
    assert level_for([1.0, 4.0, 16.0], ratio) == level


def test_a_level_that_is_slightly_too_coarse_is_read() -> None:
    assert level_for([1.0, 2.0005], 2.0) == 1


RULER_START_UM, RULER_STOP_UM = 40.0, 300.0


def ruler(mpp: float) -> np.ndarray:
    """(h, w, 3) uint8 with two dark lines 10 µm wide, 260 µm apart from centre to centre."""
    side = round(340 / mpp)
    middle = (np.arange(side) + 0.5) * mpp
    near = [
        np.clip(5 - np.abs(middle - at), 0, mpp) / mpp for at in (RULER_START_UM, RULER_STOP_UM)
    ]
    line = np.clip(255 - 235 * (near[0] + near[1]), 0, 255)
    return np.repeat(np.tile(line, (side, 1))[..., None], 3, axis=2).astype(np.uint8)


def measured_um(image: np.ndarray, mpp: float) -> tuple[float, float]:
    """Centres of the two lines in µm."""
    dark = 255.0 - image[image.shape[0] // 2, :, 1]
    dark[dark < 30] = 0
    middle = (np.arange(len(dark)) + 0.5) * mpp
    half = middle < 170
    return tuple(float((dark * middle)[h].sum() / dark[h].sum()) for h in (half, ~half))  # type: ignore[return-value]


def read_at_mpp(
    slide: Slide, size_px: int, mpp: float, sheet_mpp: float | None = None
) -> np.ndarray:
    """A square at the corner of a slide, `size_px` pixels of `mpp` µm."""
    return read_square(slide, 0, 0, size_px * mpp / resolve_mpp(sheet_mpp, slide)[0], size_px)


@pytest.mark.parametrize("slide_mpp", [0.25, 0.499, 0.37])
@pytest.mark.parametrize("downsamples", [(), (4,), (2.0005, 3.7)])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.3])
def test_a_distance_is_the_same_at_every_scale(
    svs: Callable[..., Path], slide_mpp: float, downsamples: tuple[float, ...], mpp: float
) -> None:
    path = svs(image=ruler(slide_mpp), mpp=slide_mpp, downsamples=downsamples, quality=95)
    size = int(330 / mpp)
    with open_slide(path) as slide:
        image = read_at_mpp(slide, size, mpp)
        thumbnail = read_thumbnail(slide, mpp, slide_mpp)
    assert image.shape == (size, size, 3)
    for picture in (image, thumbnail):
        start, stop = measured_um(picture, mpp)
        assert stop - start == pytest.approx(RULER_STOP_UM - RULER_START_UM, rel=0.005)
        assert start == pytest.approx(RULER_START_UM, abs=0.6)  # half a px of the coarsest level


def test_the_sheets_pixel_size_is_used_where_it_is_given(svs: Callable[..., Path]) -> None:
    path = svs(image=ruler(0.5), mpp=None)
    with open_slide(path) as slide:
        with pytest.raises(SlideError):
            read_at_mpp(slide, 100, 1.0)
        start, stop = measured_um(read_at_mpp(slide, 330, 1.0, sheet_mpp=0.5), 1.0)
    assert stop - start == pytest.approx(260, rel=0.005)


def test_a_tile_reads_the_same_alone_and_in_a_block(svs: Callable[..., Path]) -> None:
    with closing(open_slide(svs(downsamples=(4,)))) as slide:
        block = read_rectangle(slide, 0, 0, (970, 485), (160, 80))
        tile = read_square(slide, 485, 0, 485, 80)
    assert np.abs(block[:, 80:].astype(int) - tile).max() <= 1


def test_pixels_beyond_the_edge_of_a_coarse_level_are_repeated(svs: Callable[..., Path]) -> None:
    dark = np.full((331, 331, 3), 60, np.uint8)
    with closing(open_slide(svs(image=dark, downsamples=(4,)))) as slide:
        assert slide.level_sizes_px[1] == (82, 82)  # 328 of 331 px
        tile = read_square(slide, 131, 131, 200, 50)
    assert tile.max() < 70


def test_a_thumbnail_does_not_depend_on_the_block_size(
    svs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(svs()) as slide:
        whole = read_thumbnail(slide, 5.0, 0.5)
        monkeypatch.setattr(scale, "THUMBNAIL_READ_PX", 100)
        parts = read_thumbnail(slide, 5.0, 0.5)
        assert whole.shape == (77, 103, 3)
    assert np.abs(whole.astype(int) - parts).max() <= 1


@given(
    st.floats(0, 20), st.floats(0, 20), st.floats(20, 40), st.integers(1, 15), st.integers(0, 2**32)
)
def test_reduction_averages_the_exact_area(
    x: float, y: float, side: float, size: int, seed: int
) -> None:
    """By the definition: each result px is the mean of the image over its square."""
    image = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    out = resample(image, (x, y, x + side, y + side), (size, size))
    total = np.zeros((65, 65))
    total[1:, 1:] = image[..., 0].cumsum(0).cumsum(1)
    edges = np.linspace(0, side, size + 1)

    def upto(v: np.ndarray, u: np.ndarray) -> np.ndarray:
        i, j = np.minimum(v.astype(int), 63), np.minimum(u.astype(int), 63)
        a, b = (v - i)[:, None], (u - j)[None]
        low, high = total[i][:, j] * (1 - b), total[i + 1][:, j] * (1 - b)
        return (low + total[i][:, j + 1] * b) * (1 - a) + (high + total[i + 1][:, j + 1] * b) * a

    integral = upto(y + edges, x + edges)
    mean = np.diff(np.diff(integral, axis=0), axis=1) / (side / size) ** 2
    assert side / size >= scale.AREA_FROM
    assert out.shape == (size, size, 3)
    assert np.abs(out[..., 0] - mean).max() <= 0.51


@given(st.integers(1, 40), st.integers(1, 40))
def test_whole_pixels_at_the_same_scale_are_copied(width: int, height: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    out = resample(image, (3, 4, 3 + width, 4 + height), (width, height))
    assert np.array_equal(out, image[4 : 4 + height, 3 : 3 + width])
