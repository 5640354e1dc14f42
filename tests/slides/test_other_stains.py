"""Stains other than H&E are reported, and H&E is not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from stainssl.slides.other_stains import not_h_and_e
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_thumbnail
from stainssl.slides.tissue import segment_tissue

HEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
MPP = 8.0


def section(second: tuple[float, ...], share: float, seed: int = 0) -> np.ndarray:
    """(500, 500, 3): hematoxylin everywhere, a second stain (Ruifrok's vectors) over a share."""
    rng = np.random.default_rng(seed)
    blurred = [cv2.GaussianBlur(rng.random((400, 400)), (0, 0), sigma) for sigma in (2, 4)]
    nuclei = (blurred[0] - blurred[0].min()) / np.ptp(blurred[0])
    marked = blurred[1] > np.quantile(blurred[1], 1 - share)
    density = nuclei[..., None] * 0.35 * np.array(HEMATOXYLIN)
    density = density + marked[..., None] * 0.5 * np.array(second)
    picture = np.full((500, 500, 3), 243, np.uint8)
    noisy = 243 * 10**-density + rng.normal(0, 2, density.shape)
    picture[50:450, 50:450] = np.clip(noisy, 0, 255)
    return picture


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_dab_is_reported(share: float) -> None:
    picture = section(DAB, share)
    assert "like DAB" in not_h_and_e(picture, segment_tissue(picture, MPP))


def test_hematoxylin_alone_is_reported() -> None:
    picture = section(EOSIN, 0.01)
    assert "almost no eosin" in not_h_and_e(picture, segment_tissue(picture, MPP))


@pytest.mark.parametrize("share", [0.6, 0.95])
def test_hematoxylin_with_eosin_is_not_reported(share: float) -> None:
    picture = section(EOSIN, share)
    assert not_h_and_e(picture, segment_tissue(picture, MPP)) == ""


@pytest.mark.parametrize("level", [0, 128, 243, 255])
def test_an_image_without_tissue_is_not_reported(level: int) -> None:
    picture = np.full((64, 64, 3), level, np.uint8)
    assert not_h_and_e(picture, segment_tissue(picture, MPP)) == ""


def test_real_h_and_e_is_not_reported(real_data: Path) -> None:
    """Except for one thumbnail of 24, on which green ink is segmented as tissue."""
    files = sorted(p for p in (real_data / "thumbnails").iterdir() if p.suffix in (".jpg", ".png"))
    reported = []
    for file in files:
        picture = np.asarray(Image.open(file).convert("RGB"))
        if not_h_and_e(picture, segment_tissue(picture, 16.0)):
            reported.append(file.name)
    assert reported == ["histoqc-green-pen.jpg"]
    for name in ("CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs"):
        with open_slide(real_data / "slides" / name) as slide:
            thumbnail = read_thumbnail(slide, MPP, 0.5)
        assert not_h_and_e(thumbnail, segment_tissue(thumbnail, MPP)) == ""
