"""The reader `tiff` decodes the same pixels as OpenSlide; damaged files give a status."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from stainssl.errors import SlideError, Status
from stainssl.slides.readers import open_slide
from stainssl.slides.readers import openslide as openslide_reader
from stainssl.slides.readers import tiff as tiff_reader
from tests.slides.conftest import stained, write_svs, write_tiff


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide with downsamples 1, 2.0 and about 5.1, not a whole number of tiles wide."""
    image, _ = stained(np.random.default_rng(0), (531, 717))
    return write_svs(tmp_path_factory.mktemp("tiff") / "a.svs", image, downsamples=(2, 5.1))


@given(st.integers(-200, 800), st.integers(-200, 700), st.integers(0, 2), st.integers(1, 300))
def test_any_region_equals_openslides(pyramid: Path, x: int, y: int, level: int, side: int) -> None:
    with open_slide(pyramid, "tiff") as one, open_slide(pyramid, "openslide") as other:
        assert one.reader == "tiff"
        corner = [round(round(v / one.downsamples[level]) * one.downsamples[level]) for v in (x, y)]
        ours = one.read_region(*corner, level, (side, side + 7))
        theirs = other.read_region(*corner, level, (side, side + 7))
    if level == 0:
        assert np.array_equal(ours, theirs)
    else:  # OpenSlide interpolates between the px of a level, at its edge with white
        assert np.abs(ours.astype(int) - theirs).mean() <= 8 + 64 / side


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_any_chroma_subsampling_equals_openslides(
    tmp_path: Path, rng: np.random.Generator, subsampling: tuple[int, int]
) -> None:
    image, path = stained(rng, (300, 400))[0], tmp_path / "a.tif"
    tifffile.imwrite(
        path, image, tile=(128, 128), compression="jpeg", photometric="ycbcr",
        subsampling=subsampling, metadata=None,
    )  # fmt: skip
    with open_slide(path) as one, open_slide(path, "openslide") as other:
        assert (one.reader, one.vendor) == ("tiff", "generic-tiff")
        ours = one.read_region(0, 0, 0, (400, 300))
        assert np.array_equal(ours, other.read_region(0, 0, 0, (400, 300)))


def test_a_real_slide_equals_openslides(real_data: Path) -> None:
    path = real_data / "slides" / "CMU-1-Small-Region.svs"
    with open_slide(path) as one, open_slide(path, "openslide") as other:
        assert one.reader == "tiff"
        size = one.level_sizes_px[0]
        assert np.array_equal(one.read_region(0, 0, 0, size), other.read_region(0, 0, 0, size))


def test_other_compressions_than_jpeg_are_read_by_openslide(
    tmp_path: Path, rng: np.random.Generator, real_data: Path
) -> None:
    path = write_tiff(tmp_path / "a.tif", stained(rng, (200, 300))[0])
    for one in (path, real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs"):
        assert not tiff_reader.recognises(one)
        with open_slide(one) as slide:
            assert slide.reader == "openslide"
        with open_slide(one, "tiff") as slide:
            assert slide.reader == "openslide"


def test_the_number_of_cached_tiles_is_limited(
    svs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openslide_reader, "MIN_CACHE_BYTES", 5 * 128 * 128 * 3)
    monkeypatch.setattr(openslide_reader, "MAX_CACHE_BYTES", 5 * 128 * 128 * 3)
    with open_slide(svs(), "tiff") as slide:
        whole = slide.read_region(0, 0, 0, (1024, 768))
        for top in range(0, 700, 100):
            slide.read_region(10, top, 0, (1000, 100))
            assert len(slide._cache) <= 5  # type: ignore[attr-defined]
        assert np.array_equal(slide.read_region(900, 700, 0, (100, 60)), whole[700:760, 900:1000])


def test_regions_on_and_off_the_jpeg_grid_agree(
    svs: Callable[..., Path],
) -> None:
    with open_slide(svs(), "tiff") as slide:
        whole = slide.read_region(0, 0, 0, (1024, 768))
        for x, y, side in (
            (0, 0, 128),
            (128, 256, 128),
            (64, 64, 128),
            (128, 0, 256),
            (896, 640, 128),
        ):
            one = slide.read_region(x, y, 0, (side, side))
            assert np.array_equal(one, whole[y : y + side, x : x + side])
            one[:] = 0  # has no effect on later reads
            again = slide.read_region(x, y, 0, (side, side))
            assert np.array_equal(again, whole[y : y + side, x : x + side])


def test_a_file_that_shrinks_while_it_is_open_is_truncated(svs: Callable[..., Path]) -> None:
    path = svs()
    with open_slide(path, "tiff") as slide:
        os.truncate(path, path.stat().st_size // 3)
        with pytest.raises(SlideError) as caught:
            slide.read_region(0, 0, 0, (1024, 768))
    assert caught.value.status is Status.TRUNCATED


def test_a_lost_mount_raises_oserror(
    svs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with open_slide(svs(), "tiff") as slide:
        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(OSError, match="Stale file handle"):
            slide.read_region(0, 0, 0, (8, 8))


def test_file_handles_are_closed(svs: Callable[..., Path]) -> None:
    path = svs()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        with open_slide(path, "tiff") as slide:
            slide.read_region(0, 0, 0, (8, 8))
    assert len(os.listdir("/proc/self/fd")) <= before + 1


# --- damage -----------------------------------------------------------------------------------


def whole(path: Path, reader: str) -> np.ndarray | None:
    """Level 0 of a slide, None if the reader refuses it."""
    try:
        with open_slide(path, reader) as slide:
            return slide.read_region(0, 0, 0, slide.level_sizes_px[0])
    except SlideError:
        return None


@given(st.data())
def test_damaged_bytes_are_refused_if_openslide_refuses_them(
    pyramid: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    with tifffile.TiffFile(pyramid) as file:
        page = file.pages.first
        start, stop = page.dataoffsets[0], page.dataoffsets[-1] + page.databytecounts[-1]
    content = bytearray(pyramid.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(start, stop - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.svs"
    path.write_bytes(content)
    ours, theirs = whole(path, "tiff"), whole(path, "openslide")
    if theirs is None:
        assert ours is None
    else:
        assert ours is not None
        assert np.array_equal(ours, theirs)


def test_a_block_of_zeros_makes_only_its_tiles_unreadable(tmp_path: Path, real_data: Path) -> None:
    content = bytearray((real_data / "slides" / "CMU-1-Small-Region.svs").read_bytes())
    content[403_000:403_512] = bytes(512)
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    with open_slide(path) as slide:
        assert slide.reader == "tiff"
        with pytest.raises(SlideError, match="unreadable"):
            slide.read_region(0, 0, 0, slide.level_sizes_px[0])
        assert slide.read_region(1200, 2400, 0, (240, 240)).std() > 0


def test_another_page_with_the_size_of_a_level_is_ignored(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    image = stained(rng, (512, 640))[0]
    half, path = image[::2, ::2], tmp_path / "a.tif"
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, **options)
        writer.write(255 - half, **options)  # no level: it is not marked as a smaller image
        writer.write(half, subfiletype=1, **options)
    with open_slide(path, "tiff") as one, open_slide(path, "openslide") as other:
        assert one.level_sizes_px == other.level_sizes_px
        for level, size in enumerate(one.level_sizes_px):
            ours = one.read_region(0, 0, level, size)
            assert np.array_equal(ours, other.read_region(0, 0, level, size))


def test_a_tile_with_a_false_huge_size_is_refused_before_allocation(
    svs: Callable[..., Path],
) -> None:
    path = svs()
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.dataoffsets[0]
    content = bytearray(path.read_bytes())
    frame = content.index(b"\xff\xc0", start) + 5  # SOF0: marker, length, bits, then the size
    content[frame : frame + 4] = (65_500).to_bytes(2, "big") * 2
    path.write_bytes(content)
    tracemalloc.start()
    with open_slide(path, "tiff") as slide, pytest.raises(SlideError, match="unreadable"):
        slide.read_region(0, 0, 0, (128, 128))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
