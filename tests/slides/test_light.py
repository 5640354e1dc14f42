"""Wrong exposure, tint or channel order of a slide is reported."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from stainssl.slides.brightfield import channel_range, is_brightfield, light_fault
from stainssl.slides.glass import brightest_smooth_area
from stainssl.slides.other_stains import not_h_and_e, pictures_fault
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_thumbnail
from stainssl.slides.tissue import glass_white, segment_tissue
from stainssl.stages.tile import COLORS_MPP
from tests.slides.test_other_stains import DAB, EOSIN, MPP, section

ORDERS = {"BGR": (2, 1, 0), "GRB": (1, 0, 2), "RBG": (0, 2, 1), "GBR": (1, 2, 0), "BRG": (2, 0, 1)}
# µm/px of a tile set, and the least number of its sites or patients with a swap reported.
TILE_SETS = {"ami-br-tiles": (0.25, 4), "breakhis-tiles": (1.0, 8), "fan-protocols": (0.5, 4)}


def message_of(picture: np.ndarray, mpp: float = MPP) -> str:
    """The message about a thumbnail (h, w, 3) uint8 RGB; "" if there is none."""
    ground = brightest_smooth_area(picture)
    if not is_brightfield(*channel_range(picture), ground):
        return "not brightfield"
    found = segment_tissue(picture, mpp)
    return light_fault(picture, found, ground) or not_h_and_e(picture, found)


def scaled(picture: np.ndarray, factor: float | tuple[float, ...]) -> np.ndarray:
    """Multiply the intensity of all channels, or of each."""
    return np.clip(np.rint(picture * np.array(factor)), 0, 255).astype(np.uint8)


def reordered(picture: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """The picture with its channels in another order."""
    return np.ascontiguousarray(picture[..., list(order)])


@pytest.fixture(params=range(3))
def h_and_e(request: pytest.FixtureRequest) -> np.ndarray:
    return section(EOSIN, 0.6, seed=request.param)


def test_swapped_red_and_blue_are_reported(h_and_e: np.ndarray) -> None:
    assert message_of(h_and_e) == ""
    assert "(BGR)" in message_of(h_and_e[..., ::-1])


@pytest.mark.parametrize("order", list(ORDERS))
def test_channels_in_any_other_order_are_reported(h_and_e: np.ndarray, order: str) -> None:
    assert message_of(reordered(h_and_e, ORDERS[order])) != ""


@pytest.mark.parametrize("light", [1 / 3, 0.5, 0.7])
def test_underexposure_is_reported_and_does_not_change_the_mask(
    h_and_e: np.ndarray, light: float
) -> None:
    dark = scaled(h_and_e, light)
    assert "too little light" in message_of(dark)
    expected, found = segment_tissue(h_and_e, MPP).tissue, segment_tissue(dark, MPP).tissue
    assert (expected & found).sum() / (expected | found).sum() > 0.95


def test_tinted_glass_is_reported_and_is_not_tissue(h_and_e: np.ndarray) -> None:
    tinted = scaled(h_and_e, (240 / 243, 225 / 243, 190 / 243))
    assert "tinted (RGB 240, 225, 190)" in message_of(tinted)
    assert glass_white(tinted) == pytest.approx([240, 225, 190])
    assert segment_tissue(tinted, MPP).tissue[:40].sum() == 0


@pytest.mark.parametrize("glass", [(236, 229, 240), (205, 210, 215), (254, 238, 248)])
def test_glass_of_usual_scanners_is_not_reported(
    h_and_e: np.ndarray, glass: tuple[int, ...]
) -> None:
    assert message_of(scaled(h_and_e, tuple(level / 243 for level in glass))) == ""


def test_washed_out_tissue_is_reported(h_and_e: np.ndarray) -> None:
    assert "washed out" in message_of(scaled(h_and_e, 1.8))


def test_an_inverted_image_is_not_brightfield(h_and_e: np.ndarray) -> None:
    assert message_of(255 - h_and_e) == "not brightfield"
    mostly_tissue = h_and_e[40:460, 40:460]
    assert message_of(255 - mostly_tissue) == "not brightfield"


def test_tissue_in_a_black_frame_is_brightfield(h_and_e: np.ndarray) -> None:
    crop = h_and_e[60:440, 60:440]
    framed = cv2.copyMakeBorder(crop, 120, 120, 120, 120, cv2.BORDER_CONSTANT)
    assert message_of(framed) != "not brightfield"


def test_dab_is_not_taken_for_swapped_channels() -> None:
    assert "like DAB" in message_of(section(DAB, 0.5))


def test_noise_has_no_smooth_area(rng: np.random.Generator) -> None:
    assert brightest_smooth_area(rng.integers(0, 255, (64, 64, 3), np.uint8)) is None


def shrunk(picture: np.ndarray, times: int) -> np.ndarray:
    size = max(1, picture.shape[1] // times), max(1, picture.shape[0] // times)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).reshape(-1, 3)


def test_pooled_pixels_of_images_without_glass_are_checked(h_and_e: np.ndarray) -> None:
    inside = h_and_e[60:440, 60:440].reshape(-1, 3)
    assert pictures_fault(inside) == ""
    assert "(BGR)" in pictures_fault(inside[:, ::-1])
    assert "too little light" in pictures_fault(scaled(inside, 0.4))
    assert pictures_fault(inside[:100, ::-1]) == ""  # too few px
    assert pictures_fault(np.zeros((0, 3), np.uint8)) == ""
    assert pictures_fault(np.concatenate([inside, np.zeros_like(inside)])) == ""  # padding


def overviews(folder: Path) -> list[tuple[str, np.ndarray, float]]:
    """Name, image and µm/px of the real thumbnails, and of two slides."""
    files = sorted(p for p in (folder / "thumbnails").iterdir() if p.suffix in (".jpg", ".png"))
    found = [(p.name, np.asarray(Image.open(p).convert("RGB")), 16.0) for p in files]
    for name, mpp in (("CMU-1-Small-Region.svs", 0.499), ("tcga-cr-7395-01a-01-ts1.svs", 0.25)):
        with open_slide(folder / "slides" / name) as slide:
            found.append((name, read_thumbnail(slide, MPP, mpp), MPP))
    return found


@pytest.mark.parametrize(
    ("change", "least"),
    [
        *((partial(reordered, order=order), 25) for order in ORDERS.values()),
        (lambda p: scaled(p, 1 / 3), 26),
        (lambda p: scaled(p, 0.5), 25),
        (lambda p: scaled(p, (0.98, 0.92, 0.76)), 23),
    ],
)
def test_real_slides_with_changed_light_or_channels_are_reported(
    real_data: Path, change: Callable[[np.ndarray], np.ndarray], least: int
) -> None:
    messages = [message_of(change(picture), mpp) for _, picture, mpp in overviews(real_data)]
    assert sum(map(bool, messages)) >= least


@pytest.mark.parametrize(
    ("name", "mpp"), [("CMU-1-Small-Region.svs", 0.5), ("tcga-cr-7395-01a-01-ts1.svs", 0.25)]
)
def test_an_overexposed_real_slide_is_reported(real_data: Path, name: str, mpp: float) -> None:
    with open_slide(real_data / "slides" / name) as slide:
        scanned = slide.read_region(0, 0, 0, slide.level_sizes_px[0])
    size = round(scanned.shape[1] * mpp / MPP), round(scanned.shape[0] * mpp / MPP)
    bright = cv2.resize(scaled(scanned, 1.6), size, interpolation=cv2.INTER_AREA)
    assert "washed out" in message_of(bright)


def test_unchanged_real_slides_are_not_reported(real_data: Path) -> None:
    """Except for one, on which green ink is segmented as tissue."""
    reported = [name for name, picture, mpp in overviews(real_data) if message_of(picture, mpp)]
    assert reported == ["histoqc-green-pen.jpg"]


@pytest.mark.parametrize("name", list(TILE_SETS))
def test_real_tiles_are_reported_only_if_channels_or_light_are_changed(
    real_data: Path, name: str
) -> None:
    mpp, least = TILE_SETS[name]
    groups: dict[str, list[np.ndarray]] = {}
    with zipfile.ZipFile(real_data / f"{name}.zip") as archive:
        for path in sorted(archive.namelist())[:: 1 if name == "fan-protocols" else 3]:
            if path.endswith((".jpg", ".png")):
                picture = np.asarray(Image.open(io.BytesIO(archive.read(path))).convert("RGB"))
                part = shrunk(picture, round(COLORS_MPP / mpp))
                groups.setdefault(path.split("/")[0], []).append(part)
    pooled = [np.concatenate(parts) for parts in groups.values()]
    everything = np.concatenate(pooled)
    assert [pictures_fault(pixels) for pixels in [*pooled, everything]] == [""] * (len(pooled) + 1)
    assert sum("(BGR)" in pictures_fault(pixels[:, ::-1]) for pixels in pooled) >= least
    assert "too little light" in pictures_fault(scaled(everything, 1 / 3))
