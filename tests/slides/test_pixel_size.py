"""Pixel sizes in metadata: units, print resolutions, and pixels that are not square."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from stainssl.errors import SlideError, Status
from stainssl.slides.pixel_size import INCH_UM, anisotropy, is_print, mean_mpp, of_size
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import check_enlargement, resolve_mpp
from tests.slides.conftest import stained, write_tiff


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600, 1200, 2400, 4800, 9600])
def test_print_resolutions_are_not_pixel_sizes(tmp_path: Path, dpi: int) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, np.zeros((256, 256, 3), np.uint8), resolution=(dpi, dpi), resolutionunit=2)
    with open_slide(path) as slide:
        with pytest.raises(SlideError, match=f"{dpi:,} dpi.*sheet") as caught:
            resolve_mpp(None, slide)
        assert resolve_mpp(0.5, slide) == (0.5, "sheet", "")
    assert caught.value.status is Status.ABSURD_MPP


@pytest.mark.parametrize("mpp", [0.1, 0.22, 0.25, 0.2527, 0.5, 1.0, 2.0, 4.0, 5.0, 8.0, 10.0])
def test_microscope_resolutions_are_pixel_sizes(tmp_path: Path, mpp: float) -> None:
    assert not is_print(mpp)
    per_cm = 10_000 / mpp
    path = tmp_path / "a.tif"
    write_tiff(path, np.zeros((256, 256, 3), np.uint8), resolution=(per_cm,) * 2, resolutionunit=3)
    with open_slide(path) as slide:
        assert resolve_mpp(None, slide)[0] == pytest.approx(mpp, rel=1e-4)


def test_objective_power_is_used_if_the_resolution_is_of_a_print() -> None:
    class Metadata:
        anisotropy = 1.0
        mpp_sources = {"tiff-resolution": INCH_UM / 300, "objective-power": 0.25}  # noqa: RUF012

    assert resolve_mpp(None, Metadata()) == (0.25, "objective-power", "")  # type: ignore[arg-type]


def test_pixels_that_are_not_square_are_refused_unless_the_sheet_has_a_size(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.tif"
    options = {"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}
    write_tiff(path, np.zeros((256, 256, 3), np.uint8), **options)
    with open_slide(path) as slide:
        with pytest.raises(SlideError, match="2-fold") as caught:
            resolve_mpp(None, slide)
        assert resolve_mpp(0.25, slide)[0] == 0.25
    assert caught.value.status is Status.ABSURD_MPP


def test_pixel_sizes_of_both_axes_are_averaged() -> None:
    assert anisotropy(0.2277, 0.2274) < 1.002
    assert anisotropy(0.5, None) == 1
    assert mean_mpp(0.25, 0.26) == pytest.approx(0.255)
    assert mean_mpp(None, 0.5) == 0.5
    assert mean_mpp(None, None) is None


@pytest.mark.parametrize(
    ("value", "unit", "mpp"),
    [
        ("0.25", None, 0.25), ("250", "nm", 0.25), ("0.00025", "mm", 0.25), ("0.25", "µm", 0.25),
        ("0.25", "\u03bcm", 0.25), ("0.000025", "cm", 0.25), ("2500", "Å", 0.25),
        ("0.25", "pixel", None), ("0.25", "reference frame", None), ("0", "µm", None),
        ("nan", "µm", None), ("-1", "µm", None), ("a", "µm", None), (None, None, None),
    ],
)  # fmt: skip
def test_sizes_of_ome_are_converted_to_micrometres(
    value: str | None, unit: str | None, mpp: float | None
) -> None:
    assert of_size(value, unit) == (None if mpp is None else pytest.approx(mpp))


@pytest.mark.parametrize(("size", "unit", "mpp"), [(500, "nm", 0.5), (0.5, "pixel", None)])
def test_an_ome_tiff_has_the_pixel_size_of_its_unit(
    tmp_path: Path, rng: np.random.Generator, size: float, unit: str, mpp: float | None
) -> None:
    pytest.importorskip("tiatoolbox")
    path = tmp_path / "a.ome.tif"
    stated = {f"PhysicalSize{axis}": size for axis in "XY"}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    image = stained(rng, (300, 300))[0]
    tifffile.imwrite(path, image, tile=(128, 128), metadata={"axes": "YXS"} | stated | units)
    with open_slide(path) as slide:
        assert slide.reader == "tiatoolbox"
        assert slide.mpp == mpp


def test_slight_enlargement_is_reported_and_more_is_refused(svs: Callable[..., Path]) -> None:
    assert check_enlargement(0.25, 0.5, 1.5) == ""
    assert check_enlargement(0.503, 0.5, 1.5) == ""
    assert "1.2 times" in check_enlargement(0.6, 0.5, 1.5)
    with pytest.raises(SlideError, match="max_enlargement") as caught:
        check_enlargement(0.5, 0.25, 1.5)
    assert caught.value.status is Status.TOO_COARSE
