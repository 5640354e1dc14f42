"""Readers open slides, and raise an error with a status for other files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from stainssl.errors import SlideError, StainsslError, Status
from stainssl.slides.readers import open_slide
from stainssl.slides.readers import openslide as openslide_reader
from stainssl.slides.readers.openslide import mpp_sources, over_white


def status_of(path: Path, reader: str = "auto") -> Status:
    with pytest.raises(SlideError) as caught, open_slide(path, reader) as slide:
        for level, size in enumerate(slide.level_sizes_px):
            slide.read_region(0, 0, level, size)
    assert caught.value.detail.endswith(".")
    return caught.value.status


def test_levels_and_pixel_size_of_an_aperio_slide(svs: Callable[..., Path]) -> None:
    with open_slide(svs(mpp=0.25, magnification=40)) as slide:
        assert (slide.vendor, slide.reader) == ("aperio", "tiff")
        assert slide.level_sizes_px == [(1024, 768), (256, 192)]
        assert slide.downsamples == [1.0, 4.0]
        assert slide.bounds_level0_px == (0, 0, 1024, 768)
        assert slide.mpp_sources == {"format": 0.25, "objective-power": 0.25}
        assert (slide.mpp, slide.mpp_source, slide.objective_power) == (0.25, "format", 40)


def test_reading_outside_a_slide_is_white(svs: Callable[..., Path]) -> None:
    with open_slide(svs()) as slide:
        image = slide.read_region(1024 - 10, -5, 0, (20, 10))
    assert image.shape == (10, 20, 3)
    assert image.dtype == np.uint8
    assert (image[:, 10:] == 255).all()
    assert (image[:5] == 255).all()


def test_transparent_pixels_are_blended_with_white() -> None:
    rgba = np.array([[[0, 0, 0, 0], [10, 20, 30, 255], [0, 100, 200, 51]]], np.uint8)
    assert over_white(rgba).tolist() == [[[255, 255, 255], [10, 20, 30], [204, 224, 244]]]


def test_bounds_are_clipped_to_the_slide() -> None:
    keys = ("x", "y", "width", "height")
    given = {f"openslide.bounds-{k}": str(v) for k, v in zip(keys, (50, 60, 900, 30), strict=True)}
    assert openslide_reader._bounds(given, (800, 100)) == (50, 60, 750, 30)
    assert openslide_reader._bounds({}, (800, 100)) == (0, 0, 800, 100)


@pytest.mark.parametrize(
    ("properties", "vendor", "expected"),
    [
        ({"openslide.mpp-x": "0.2", "openslide.mpp-y": "0.3"}, "aperio", {"format": 0.25}),
        (
            {
                "openslide.mpp-x": "1",
                "tiff.ResolutionUnit": "centimeter",
                "tiff.XResolution": "20000",
            },
            "generic-tiff",
            {"tiff-resolution": 0.5},
        ),
        (
            {"tiff.ResolutionUnit": "inch", "tiff.XResolution": "50800"},
            "generic-tiff",
            {"tiff-resolution": 0.5},
        ),
        ({"tiff.XResolution": "20000"}, "generic-tiff", {}),
        ({"openslide.objective-power": "20"}, "aperio", {"objective-power": 0.5}),
        ({"openslide.mpp-x": "nan", "openslide.objective-power": "0"}, "aperio", {}),
    ],
)
def test_sources_of_the_pixel_size(
    properties: dict[str, str], vendor: str, expected: dict[str, float]
) -> None:
    assert mpp_sources(properties, vendor) == pytest.approx(expected)


def test_a_text_file_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "notes.svs").write_text("not a slide at all")
    assert status_of(tmp_path / "notes.svs") is Status.UNSUPPORTED


def test_an_empty_file_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").touch()
    assert status_of(tmp_path / "empty.svs") is Status.UNSUPPORTED


def _zero_tag(path: Path, page: int, tag: str) -> None:
    with tifffile.TiffFile(path) as file:
        found = file.pages[page].tags[tag]
    with path.open("r+b") as data:
        data.seek(found.valueoffset)
        data.write(bytes(4 if found.dtype == tifffile.DATATYPE.LONG else 2))


@pytest.mark.parametrize("tag", ["ImageWidth", "ImageLength", "TileWidth"])
def test_a_level_of_size_zero_is_ignored_or_gives_a_status(
    svs: Callable[..., Path], tag: str
) -> None:
    path = svs("last")
    with open_slide(path) as slide:
        levels = slide.level_sizes_px
    with tifffile.TiffFile(path) as file:
        last = max(i for i, page in enumerate(file.pages) if page.is_tiled)
    _zero_tag(path, last, tag)
    with open_slide(path) as slide:
        assert slide.level_sizes_px == levels[:-1]
    first = svs("first")
    _zero_tag(first, 0, tag)
    assert status_of(first) in {Status.UNREADABLE, Status.TRUNCATED, Status.UNSUPPORTED}


@pytest.mark.parametrize("share", [0.01, 0.02, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_a_slide_cut_off_anywhere_is_truncated(svs: Callable[..., Path], share: float) -> None:
    path = svs()
    os.truncate(path, int(path.stat().st_size * share))
    assert status_of(path) is Status.TRUNCATED


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_a_slide_with_a_changed_byte_is_read_or_gives_a_status(
    svs: Callable[..., Path], rng: np.random.Generator, reader: str
) -> None:
    path = svs(shape=(200, 300))
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        directories = [page.offset for page in tiff.pages]
    positions = rng.integers(0, len(whole), 100).tolist()  # anywhere, and in the directories
    positions += [directories[i % 2] + int(rng.integers(0, 200)) for i in range(100)]
    for position in positions:
        changed = bytearray(whole)
        changed[min(position, len(whole) - 1)] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            with open_slide(path, reader) as slide:
                for level, (width, height) in enumerate(slide.level_sizes_px):
                    slide.read_region(0, 0, level, (min(width, 1000), min(height, 1000)))
        except SlideError as error:
            assert error.detail


def test_an_absurd_tile_width_does_not_end_the_process(svs: Callable[..., Path]) -> None:
    path = svs()
    with tifffile.TiffFile(path) as tiff:
        position = tiff.pages[1].tags["TileWidth"].valueoffset
    with path.open("r+b") as file:  # OpenSlide aborts where it cannot allocate
        file.seek(position)
        file.write(b"\xff\x7f")
    assert status_of(path) is Status.UNREADABLE


def test_a_folder_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "folder.svs").mkdir()
    assert status_of(tmp_path / "folder.svs") is Status.UNSUPPORTED


def test_real_files_that_cannot_be_read(real_data: Path) -> None:
    folder = real_data / "slides"
    assert status_of(folder / "broken.svs") is Status.UNSUPPORTED
    assert status_of(folder / "unopenable.tiff") is Status.UNSUPPORTED
    assert status_of(folder / "unreadable.svs") is Status.UNREADABLE


@pytest.mark.parametrize(
    ("name", "vendor", "mpp"),
    [
        ("CMU-1-Small-Region.svs", "aperio", 0.499),
        ("tcga-cr-7395-01a-01-ts1.svs", "aperio", None),
        ("boxes-dicom/boxes_0.dcm", "dicom", 0.499),
        ("boxes.tiff", "generic-tiff", 352.7778),
    ],
)
def test_real_files_that_are_read(
    real_data: Path, name: str, vendor: str, mpp: float | None
) -> None:
    with open_slide(real_data / "slides" / name) as slide:
        assert slide.vendor == vendor
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp))
        image = slide.read_region(0, 0, len(slide.downsamples) - 1, (16, 8))
    assert image.shape == (8, 16, 3)


def test_a_missing_file_raises_filenotfounderror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_slide(tmp_path / "gone.svs")


def test_a_failing_disk_raises_oserror(
    svs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_slide(svs(), "openslide") as slide:
        monkeypatch.setattr(slide._handle, "read_region", fail)  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="Input/output error") as caught:
            slide.read_region(0, 0, 0, (8, 8))
    assert caught.value.errno == errno.EIO


def test_a_file_deleted_while_it_is_read_raises_filenotfounderror(
    svs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import openslide

    def fail(*_: object) -> None:
        raise openslide.OpenSlideError("Can't read")

    path = svs()
    with open_slide(path, "openslide") as slide:
        monkeypatch.setattr(slide._handle, "read_region", fail)  # type: ignore[attr-defined]
        path.unlink()
        with pytest.raises(FileNotFoundError):
            slide.read_region(0, 0, 0, (8, 8))


def test_an_unknown_reader_is_refused(svs: Callable[..., Path]) -> None:
    with pytest.raises(StainsslError, match="openslide"):
        open_slide(svs(), "magic")


def test_auto_reads_images_with_patches(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (1, 2, 3)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.reader == "patches"
