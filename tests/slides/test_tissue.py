"""Pale and fatty tissue is tissue; glass, ink, frames and dust are not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from stainssl.demo import make
from stainssl.errors import SlideError
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_thumbnail
from stainssl.slides.tissue import (
    glass_white,
    optical_density_log10,
    segment_tissue,
    tissue_map,
)

MPP = 8.0
GLASS = np.array([241, 243, 240])
EOSIN, HEMATOXYLIN = np.array([0.2, 0.8, 0.55]), np.array([0.6, 0.7, 0.35])


def colored(od: np.ndarray, glass: np.ndarray = GLASS) -> np.ndarray:
    """(h, w, 3) uint8 of optical densities over glass."""
    return np.clip((glass + 1) * 10.0**-od - 1, 0, 255).astype(np.uint8)


def slide(rng: np.random.Generator, strength: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """A disk of mixed stain in the middle of glass with camera noise, and the disk."""
    y, x = np.mgrid[:160, :200]
    disk = (x - 100) ** 2 + (y - 80) ** 2 < 50**2
    mix = cv2.GaussianBlur(rng.random((160, 200)).astype(np.float32), (0, 0), 2)[..., None]
    od = strength * (mix * HEMATOXYLIN + (1 - mix) * EOSIN) * disk[..., None]
    noisy = colored(od) + rng.normal(0, 1.2, (160, 200, 3))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), disk


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("strength", [0.06, 0.15, 0.4, 1.2])
def test_tissue_is_found_from_pale_to_dark(rng: np.random.Generator, strength: float) -> None:
    image, disk = slide(rng, strength)
    assert iou(tissue_map(image, MPP).tissue, disk) > 0.95


@pytest.mark.parametrize(
    "glass", [(255, 255, 255), (243, 243, 243), (254, 240, 246), (228, 225, 220)]
)
def test_tinted_glass_is_not_tissue(rng: np.random.Generator, glass: tuple[int, int, int]) -> None:
    image = np.clip(np.array(glass) + rng.normal(0, 1.2, (150, 150, 3)), 0, 255).astype(np.uint8)
    assert glass_white(image) == pytest.approx(np.array(glass), abs=1.5)
    assert not tissue_map(image, MPP).tissue.any()


@pytest.mark.parametrize(
    "ink",
    [
        (0.7, 0.45, 0.05),
        (0.75, 0.25, 0.4),
        (1.4, 1.45, 1.4),
        (0.05, 0.95, 0.9),
        (0.0, 0.26, 1.2),
        (0.0, 0.03, 0.75),
        (0.0, 0.0, 0.3),
        (0.26, 0.75, 0.05),
        (0.32, 0.55, 0.85),
        (0.0, 1.05, 0.23),
        (0.3, 1.9, 0.3),
    ],
    ids=[
        *("blue", "green", "black", "red", "orange", "yellow", "highlighter", "violet", "brown"),
        *("neon pink", "purple"),
    ],
)
def test_ink_of_any_color_is_not_tissue(
    rng: np.random.Generator, ink: tuple[float, float, float]
) -> None:
    image, disk = slide(rng)
    stroke = np.zeros(disk.shape, np.uint8)
    cv2.line(stroke, (10, 15), (190, 15), 1, 8)
    stroke = stroke.astype(bool)
    image[stroke] = colored(np.broadcast_to(np.array(ink), (int(stroke.sum()), 3)))
    found = tissue_map(image, MPP)
    assert found.ink[stroke].all()
    assert not (found.tissue & found.ink).any()
    assert found.tissue[stroke].mean() <= 0.03
    assert iou(found.tissue, disk) > 0.93


def test_ink_that_extends_onto_tissue_is_ink(rng: np.random.Generator) -> None:
    image, disk = slide(rng, strength=0.5)
    stroke = np.zeros(disk.shape, np.uint8)
    cv2.line(stroke, (20, 80), (140, 80), 1, 10)
    stroke = stroke.astype(bool)
    od = optical_density_log10(image, glass_white(image)) + stroke[..., None] * np.array(
        [0.6, 0.35, 0.07]
    )
    found = tissue_map(colored(od), MPP)
    assert found.ink[stroke].mean() > 0.95
    assert found.ink[~stroke].mean() < 0.1


def test_blue_ink_on_tissue_only_is_ink(rng: np.random.Generator) -> None:
    image, disk = slide(rng, strength=0.5)
    stroke = np.zeros(disk.shape, np.uint8)
    cv2.line(stroke, (72, 80), (128, 86), 1, 10)
    stroke = stroke.astype(bool)
    od = optical_density_log10(image, glass_white(image)) + stroke[..., None] * [0.55, 0.5, 0.1]
    found = tissue_map(colored(od), MPP)
    assert found.ink[stroke].mean() > 0.95
    assert found.ink[~stroke].mean() < 0.1


def test_a_cluster_of_dark_nuclei_is_tissue(rng: np.random.Generator) -> None:
    image, disk = slide(rng, strength=0.3)
    cluster = cv2.circle(np.zeros(disk.shape, np.uint8), (100, 80), 20, 1, -1).astype(bool)
    image[cluster] = colored(1.1 * (0.7 * HEMATOXYLIN + 0.3 * EOSIN)[None])[0]
    found = tissue_map(image, MPP)
    assert not found.ink.any()
    assert found.tissue[cluster].all()


DAB = np.array([0.27, 0.57, 0.78])
BLOOD = np.array([0.15, 0.75, 0.68])


def textured(
    rng: np.random.Generator, od: np.ndarray, shape: tuple[int, int], spread: float = 0.5
) -> np.ndarray:
    """(h, w, 3) optical densities that vary at the scale of cells."""
    cells = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), 1.0)
    return od * np.clip(1 + spread * cells, 0.3, 1.7)[..., None]


@pytest.mark.parametrize(
    ("name", "od"),
    [
        ("eosin", 0.7 * EOSIN),
        ("pure eosin", np.array([0.04, 0.6, 0.07])),
        ("blood", BLOOD),
        ("dense", 1.2 * (0.7 * HEMATOXYLIN + 0.3 * EOSIN)),
    ],
)
@pytest.mark.parametrize("center", [(100, 80), (172, 30)], ids=["inside", "beside"])
def test_a_region_of_one_stain_is_tissue(
    rng: np.random.Generator, name: str, od: np.ndarray, center: tuple[int, int]
) -> None:
    image, disk = slide(rng)
    piece = cv2.circle(np.zeros(disk.shape, np.uint8), center, 18, 1, -1).astype(bool)
    image[piece] = colored(textured(rng, od, piece.shape))[piece]
    found = tissue_map(image, MPP)
    assert not found.ink.any(), name
    assert found.tissue[piece].all()


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_brown_chromogen_is_tissue_also_on_a_fragment(
    rng: np.random.Generator, share: float
) -> None:
    _, disk = slide(rng)
    fragment = cv2.circle(np.zeros(disk.shape, np.uint8), (175, 25), 20, 1, -1).astype(bool)
    hills = cv2.GaussianBlur(rng.random(disk.shape).astype(np.float32), (0, 0), 6)
    positive = (hills >= np.quantile(hills, 1 - share)) | fragment
    brown = cv2.GaussianBlur(positive.astype(np.float32), (0, 0), 1.0)[..., None]
    od = brown * textured(rng, 1.2 * DAB, disk.shape)
    od = (od + textured(rng, 0.3 * HEMATOXYLIN, disk.shape)) * (disk | fragment)[..., None]
    noisy = colored(od) + rng.normal(0, 1.2, od.shape)
    found = tissue_map(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), MPP)
    assert not found.ink.any()
    assert found.tissue[disk | fragment].mean() > 0.98


def test_brown_pigment_in_tissue_is_not_ink(rng: np.random.Generator) -> None:
    image, disk = slide(rng)
    pigment = cv2.circle(np.zeros(disk.shape, np.uint8), (100, 80), 18, 1, -1).astype(bool)
    image[pigment] = colored(textured(rng, 1.3 * DAB, disk.shape))[pigment]
    assert not tissue_map(image, MPP).ink.any()


def test_a_black_frame_is_neither_tissue_nor_ink(rng: np.random.Generator) -> None:
    image, disk = slide(rng)
    framed = cv2.copyMakeBorder(image, 40, 40, 40, 40, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    found = tissue_map(framed, MPP)
    assert not found.ink.any()
    assert iou(found.tissue[40:-40, 40:-40], disk) > 0.95
    assert not found.tissue[:40].any()


def test_grey_shadow_and_glass_edge_are_not_tissue(rng: np.random.Generator) -> None:
    image, disk = slide(rng)
    image[:, :12] = (200, 201, 200)
    cv2.line(image, (30, 0), (10, 159), (120, 121, 120), 2)
    assert iou(tissue_map(image, MPP).tissue, disk) > 0.95


def test_fat_between_thin_walls_is_tissue(rng: np.random.Generator) -> None:
    side = 150
    walls = np.zeros((side * 4, side * 4), np.float32)  # 2 µm/px: cells of 90 µm, walls of 4 µm
    for at in range(120, side * 4 - 100, 45):
        cv2.line(walls, (120, at), (side * 4 - 100, at), 1, 2)
        cv2.line(walls, (at, 120), (at, side * 4 - 100), 1, 2)
    walls = cv2.resize(walls, (side, side), interpolation=cv2.INTER_AREA)
    noisy = colored(0.12 * walls[..., None] * EOSIN) + rng.normal(0, 0.5, (side, side, 3))
    image = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    mask = tissue_map(image, MPP).tissue
    assert mask[34:121, 34:121].mean() > 0.9
    assert mask[:25].mean() < 0.02


def test_small_specks_are_removed_and_small_holes_filled(rng: np.random.Generator) -> None:
    image, _ = slide(rng)
    image[10:14, 10:14] = colored(0.4 * EOSIN[None])[0]  # 1,024 µm²
    image[70:80, 90:100] = GLASS  # 6,400 µm²
    image[90:110, 90:120] = GLASS  # 38,400 µm²
    mask = tissue_map(image, MPP, min_area_um2=5_000, min_hole_um2=10_000).tissue
    assert not mask[8:16, 8:16].any()
    assert mask[70:80, 90:100].all()
    assert not mask[95:105, 96:114].any()
    assert tissue_map(image, MPP, min_area_um2=0).tissue[11:13, 11:13].all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 2)])
def test_tiny_thumbnails_are_segmented(shape: tuple[int, int]) -> None:
    found = tissue_map(np.full((*shape, 3), 240, np.uint8), MPP)
    assert found.tissue.shape == found.ink.shape == shape
    assert not found.tissue.any()


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (20, 30, 200)])
def test_an_image_of_only_frame_glass_or_ink_has_no_tissue(
    color: tuple[int, int, int],
) -> None:
    found = tissue_map(np.full((60, 80, 3), color, np.uint8), MPP)
    assert not found.tissue.any()
    assert found.ink.all() == (color == (20, 30, 200))


def test_optical_density_equals_its_definition() -> None:
    image = np.array([[[254, 0, 127]]], np.uint8)
    expected = [-np.log10(255 / 256), np.log10(256), np.log10(2)]
    assert optical_density_log10(image)[0, 0] == pytest.approx(expected, abs=1e-6)
    assert optical_density_log10(image, np.array([100, 0, 127]))[0, 0] == pytest.approx([0, 0, 0])


@pytest.mark.parametrize(
    ("name", "least", "most", "most_pen"),
    [
        ("TCGA-A2-A04N-01Z-00-DX1.jpg", 0.10, 0.30, 0.01),  # pale fat in a black frame
        ("TCGA-A2-A0YM-01Z-00-DX1.jpg", 0.15, 0.30, 0.01),  # fat, black frame, ink at the margin
        ("TCGA-A2-A0CX-01Z-00-DX1.png", 0.10, 0.25, 0.01),  # fat, transparent frame
        ("hs2p-slide.jpg", 0.40, 0.50, 0.01),
        ("histolab-pen-multicolour.jpg", 0.25, 0.50, 0.45),  # green, red and black pen
    ],
)
def test_tissue_and_ink_shares_of_real_thumbnails(
    real_data: Path, name: str, least: float, most: float, most_pen: float
) -> None:
    with open_slide(real_data / "thumbnails" / name, "patches") as picture:
        image = picture.read_region(0, 0, 0, picture.level_sizes_px[0])
    found = tissue_map(image, 16.0)
    assert least < found.tissue.mean() < most
    assert found.ink.mean() < most_pen


OVERVIEWS = ("TCGA-A2-A04P-01Z-00-DX1_01.jpg", "TCGA-A2-A0ST-01Z-00-DX1_01.jpg", "hs2p-slide.jpg")
OVERVIEWS += ("TCGA-A2-A0CR-01Z-00-DX1_01.jpg", "histoqc-prostate-edge-region.jpg")
PENS = {"orange": (255, 140, 0), "yellow": (255, 235, 40), "violet": (138, 43, 226)}
PENS |= {"brown": (120, 70, 30), "neon pink": (255, 20, 147)}


@pytest.mark.parametrize("name", OVERVIEWS)
def test_real_thumbnails_have_ink_only_if_it_is_drawn(real_data: Path, name: str) -> None:
    with open_slide(real_data / "thumbnails" / name, "patches") as picture:
        image = picture.read_region(0, 0, 0, picture.level_sizes_px[0])
    clean = tissue_map(image, 16.0)
    assert not clean.ink.any()
    around = cv2.dilate(clean.tissue.astype(np.uint8), np.ones((41, 41), np.uint8))
    rings, _ = cv2.findContours(around, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    ring = max(rings, key=len)
    stroke = cv2.polylines(np.zeros_like(around), [ring[: len(ring) // 3]], False, 1, 14)
    through = cv2.GaussianBlur(stroke.astype(np.float32), (0, 0), 0.8)[..., None]
    beside = stroke.astype(bool) & ~clean.tissue
    for color, rgb in PENS.items():
        drawn = image * (1 - through + through * np.array(rgb) / 255)
        found = tissue_map(np.rint(drawn).astype(np.uint8), 16.0)
        assert found.ink[beside].mean() > 0.98, color
        assert not found.tissue[beside].any(), color


@pytest.mark.parametrize("kind", ["otsu", "morphological"])
def test_maskers_of_tiatoolbox_exclude_ink(rng: np.random.Generator, kind: str) -> None:
    image, disk = slide(rng)
    image[10:20, 10:190] = colored(np.array([0.7, 0.45, 0.05]))
    found = segment_tissue(image, MPP, kind)
    assert iou(found.tissue, disk) > 0.8
    assert found.ink[12:18, 20:180].all()
    assert not (found.tissue & found.ink).any()
    assert not segment_tissue(np.full((30, 30, 3), 240, np.uint8), MPP, kind).tissue.any()


def test_tissue_of_the_demo_agrees_with_the_truth(tmp_path: Path) -> None:
    """On a small demo cohort; `benchmarks/tissue.py` measures a whole one."""
    make(tmp_path / "demo", seed=3, patients={"a": 1}, side_px=2048)
    shares, pen_as_tissue, pen = [], 0, 0
    for path in sorted((tmp_path / "demo" / "slides").glob("*.svs")):
        truth = np.load(tmp_path / "demo" / "truth" / f"{path.stem}.npz")
        try:
            with open_slide(path) as one:
                found = tissue_map(read_thumbnail(one, MPP, 0.5), MPP)
        except SlideError:
            continue
        ink, tissue = truth["pen"] > 0, truth["tissue"] > 0
        if tissue.any():
            shares.append(iou(found.tissue & ~ink, tissue & ~ink))
        pen_as_tissue, pen = pen_as_tissue + (found.tissue & ink).sum(), pen + ink.sum()
    assert np.mean(shares) >= 0.9
    assert min(shares) >= 0.8
    assert pen_as_tissue <= 0.03 * pen


def test_masks_do_not_depend_on_the_number_of_threads(rng: np.random.Generator) -> None:
    """On an image of several strips, with ink on glass and on tissue."""
    image, _ = slide(rng)
    image = np.tile(image, (3, 3, 1))
    cv2.line(image, (20, 10), (500, 400), (40, 60, 160), 6)
    one, several = (tissue_map(image, MPP, threads=n) for n in (1, 3))
    assert one.ink.any()
    np.testing.assert_array_equal(one.ink, several.ink)
    np.testing.assert_array_equal(one.tissue, several.tissue)
