"""Ordinary TIFFs are read with the pixels of tifffile, or refused with a message."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stainssl.errors import SlideError, Status
from stainssl.slides.readers import open_slide
from tests.slides.conftest import stained

MICROSCOPE = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
VARIANTS: dict[str, dict[str, object]] = {
    "lzw-strips": {"rowsperstrip": 33, "compression": "lzw", "predictor": True},
    "plain-strips": {"rowsperstrip": 64},
    "one-strip": {},
    "deflate-one-strip": {"compression": "deflate", "rowsperstrip": 301},
    "jpeg-strips": {"rowsperstrip": 64, "compression": "jpeg"},
    "webp-tiles": {"tile": (128, 128), "compression": "webp"},
    "png-tiles": {"tile": (128, 128), "compression": "png"},
    "jpeg2000-tiles": {"tile": (128, 128), "compression": "jpeg2000"},
    "big-endian": {"tile": (128, 128), "compression": "jpeg", "byteorder": ">"},
    "bigtiff": {"rowsperstrip": 40, "compression": "zstd", "bigtiff": True},
}


def picture(shape: tuple[int, int] = (301, 427)) -> np.ndarray:
    return stained(np.random.default_rng(0), shape)[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    """Variant → the file, and its image as read by tifffile."""
    folder, found = tmp_path_factory.mktemp("ordinary"), {}
    for name, options in VARIANTS.items():
        path = folder / f"{name}.tif"
        tifffile.imwrite(path, picture(), photometric="rgb", metadata=None, **MICROSCOPE, **options)
        found[name] = path, tifffile.imread(path)
    path = folder / "planar.tif"
    planes = np.moveaxis(picture(), 2, 0)
    tifffile.imwrite(
        path, planes, photometric="rgb", planarconfig="separate", rowsperstrip=50,
        compression="lzw", metadata=None, **MICROSCOPE,
    )  # fmt: skip
    return found | {"planar": (path, picture())}


@given(
    st.sampled_from([*VARIANTS, "planar"]),
    st.integers(-50, 430), st.integers(-50, 310), st.integers(1, 200),
)  # fmt: skip
def test_any_region_equals_tifffiles_and_is_white_outside(
    written: dict[str, tuple[Path, np.ndarray]], name: str, x: int, y: int, side: int
) -> None:
    path, whole = written[name]
    expected = np.full((side, side + 3, 3), 255, np.uint8)
    top, left = max(0, -y), max(0, -x)
    part = whole[max(0, y) : max(0, y + side), max(0, x) : max(0, x + side + 3)]
    expected[top : top + part.shape[0], left : left + part.shape[1]] = part
    with open_slide(path) as slide:
        assert slide.reader == "tifffile"
        assert slide.mpp_sources == {"tiff-resolution": 0.5}
        assert np.array_equal(slide.read_region(x, y, 0, (side + 3, side)), expected)


def test_the_pixel_size_of_fiji_is_read(tmp_path: Path) -> None:
    path = tmp_path / "fiji.tif"
    options = {"imagej": True, "resolution": (2, 2)}
    tifffile.imwrite(path, picture(), metadata={"unit": "micron"}, **options)
    with open_slide(path) as slide:
        assert slide.mpp == 0.5
    tifffile.imwrite(path, picture(), metadata={"unit": "pixel"}, **options)
    with open_slide(path) as slide:
        assert slide.mpp is None


def test_reduced_pages_are_levels(tmp_path: Path) -> None:
    path, image = tmp_path / "a.tif", picture((400, 600))
    options = {"photometric": "rgb", "metadata": None, "compression": "lzw", "rowsperstrip": 64}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, **options)
        writer.write(np.ascontiguousarray(image[::4, ::4]), subfiletype=1, **options)
        writer.write(np.ascontiguousarray(image[:100]), subfiletype=1, **options)  # another shape
        writer.write(np.ascontiguousarray(image[::2, ::2]), subfiletype=1, **options)
    with open_slide(path) as slide:
        assert slide.level_sizes_px == [(600, 400), (300, 200), (150, 100)]
        assert slide.downsamples == [1, 2, 4]
        assert np.array_equal(slide.read_region(40, 80, 2, (50, 60)), image[80:320:4, 40:240:4])


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    alpha = np.full((301, 427, 1), 255, np.uint8)
    alpha[:, :100] = 0
    Image.fromarray(np.dstack([picture(), alpha])).save(path)
    with open_slide(path) as slide:
        image = slide.read_region(0, 0, 0, (427, 301))
    assert image[:, :100].min() == 255
    assert np.array_equal(image[:, 100:], picture()[:, 100:])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: tifffile.imwrite(p, picture()[..., 0]), "is gray"),
        (lambda p: tifffile.imwrite(p, picture()[..., 0], ome=True), "is gray"),
        (lambda p: tifffile.imwrite(p, np.stack([picture()] * 3), imagej=True), "stack of 3"),
        (lambda p: tifffile.imwrite(p, np.stack([picture()] * 2), photometric="rgb"), "stack of 2"),
        (
            lambda p: tifffile.imwrite(p, picture().astype(np.uint16), photometric="rgb"),
            "uint16 values",
        ),
        (lambda p: Image.fromarray(picture()).quantize(8).save(p), "vips tiffsave a.tif"),
    ],
)
def test_unsupported_tiffs_are_refused_with_a_reason(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "a.tif"
    write(path)
    with pytest.raises(SlideError, match=message) as caught:
        open_slide(path)
    assert caught.value.status is Status.UNSUPPORTED


def test_the_size_of_a_compressed_segment_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stainssl.slides.readers.tifffile.MAX_SEGMENT_PX", 301 * 427 - 1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", compression="lzw", rowsperstrip=301)
    with pytest.raises(SlideError, match=r"one piece.*vips"):
        open_slide(path)
    tifffile.imwrite(path, picture(), photometric="rgb")  # memory-mapped, not decoded
    with open_slide(path) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, (427, 301)), picture())


def test_a_segment_with_a_false_huge_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", tile=(128, 128), compression="png")
    content = bytearray(path.read_bytes())
    start = content.index(b"IHDR")
    content[start + 4 : start + 12] = struct.pack(">II", 60_000, 60_000)
    path.write_bytes(content)
    with open_slide(path) as slide, pytest.raises(SlideError) as caught:
        slide.read_region(0, 0, 0, (300, 300))
    assert caught.value.status is Status.UNREADABLE


def test_a_damaged_jpeg_strip_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb", "compression": "jpeg", "rowsperstrip": 64}
    tifffile.imwrite(path, picture(), **options)
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.dataoffsets[1] + file.pages.first.databytecounts[1] // 2
    content = bytearray(path.read_bytes())
    content[start : start + 64] = bytes(64)
    path.write_bytes(content)
    with open_slide(path) as slide, pytest.raises(SlideError) as caught:
        slide.read_region(0, 0, 0, (427, 301))
    assert caught.value.status is Status.UNREADABLE


def test_a_png_named_tif_is_read_by_patches(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "PNG")
    path = tmp_path / "a.tif"  # the reader is chosen by content, not by name
    path.write_bytes(buffer.getvalue())
    with open_slide(path) as slide:
        assert slide.reader == "patches"
