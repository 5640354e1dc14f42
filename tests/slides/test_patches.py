"""An image file is a slide of one level without a pixel size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stainssl.errors import SlideError, Status
from stainssl.slides.readers import open_slide, patches


def refused(path: Path) -> Status:
    with pytest.raises(SlideError) as caught:
        open_slide(path, "patches")
    return caught.value.status


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_pixels_are_read_as_written(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / f"a.{suffix}")
    slide = open_slide(tmp_path / f"a.{suffix}", "patches")
    assert (slide.level_sizes_px, slide.bounds_level0_px) == ([(30, 20)], (0, 0, 30, 20))
    assert (slide.mpp, slide.mpp_source) == (None, None)
    assert np.array_equal(slide.read_region(0, 0, 0, (30, 20)), image)
    around = slide.read_region(-2, 18, 0, (5, 4))
    assert np.array_equal(around[:2, 2:], image[18:, :3])
    assert (around[2:] == 255).all()
    assert (slide.read_region(-50, -50, 0, (4, 4)) == 255).all()
    slide.close()


def test_transparent_pixels_are_white_and_grey_images_become_rgb(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 10, 10, 0)).save(tmp_path / "clear.png")
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    clear, grey = (open_slide(tmp_path / f"{n}.png", "patches") for n in ("clear", "grey"))
    assert (clear.read_region(0, 0, 0, (4, 4)) == 255).all()
    assert (grey.read_region(0, 0, 0, (4, 4)) == 77).all()


def test_a_16_bit_image_is_unsupported(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 900, np.uint16)).save(tmp_path / "deep.png")
    assert refused(tmp_path / "deep.png") is Status.UNSUPPORTED


def test_a_text_file_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    assert refused(tmp_path / "a.png") is Status.UNSUPPORTED


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_incomplete_image_is_truncated(
    tmp_path: Path, rng: np.random.Generator, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rng.integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refused(path) is Status.TRUNCATED


def test_an_image_above_the_size_limit_is_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "MAX_PIXELS", 99)
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    assert refused(tmp_path / "a.png") is Status.UNSUPPORTED


def test_a_patch_has_one_level(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="only level 0"):
        open_slide(tmp_path / "a.png", "patches").read_region(0, 0, 1, (2, 2))
