"""Files that are dark, rotated, too large or that refer to other files are refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image

from stainssl.errors import SlideError, Status
from stainssl.slides.brightfield import channel_range, is_brightfield, require_brightfield
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_thumbnail
from tests.slides.conftest import stained, write_tiff


def test_fluorescence_is_not_brightfield(real_data: Path) -> None:
    with open_slide(real_data / "slides" / "fluorescence-tritc.ndpi") as slide:
        assert slide.mpp
        thumbnail = read_thumbnail(slide, 8.0, slide.mpp)
    with pytest.raises(SlideError) as caught:
        require_brightfield(*channel_range(thumbnail))
    assert caught.value.status is Status.NOT_BRIGHTFIELD


def test_every_real_thumbnail_is_brightfield(real_data: Path) -> None:
    files = [*(real_data / "thumbnails").glob("*.jpg"), *(real_data / "thumbnails").glob("*.png")]
    assert len(files) > 20
    for path in files:
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert is_brightfield(*channel_range(picture)), path.name


def test_a_crop_of_dense_tissue_is_brightfield() -> None:
    assert is_brightfield(*channel_range(np.full((50, 50, 3), (110, 60, 130), np.uint8)))
    assert not is_brightfield(*channel_range(np.zeros((50, 50, 3), np.uint8)))


@given(arrays(np.uint8, (5, 4, 3)))
def test_channel_range_equals_numpys(picture: np.ndarray) -> None:
    least, most = channel_range(picture)
    np.testing.assert_array_equal(least, picture.min(axis=2))
    np.testing.assert_array_equal(most, picture.max(axis=2))


def test_exif_orientation_is_applied(tmp_path: Path, rng: np.random.Generator) -> None:
    image = Image.fromarray(rng.integers(0, 256, (40, 70, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.level_sizes_px == [(40, 70)]
        turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
        assert np.array_equal(slide.read_region(0, 0, 0, (40, 70)), turned)


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("options", [{"tile": (128, 128)}, {"tile": None, "rowsperstrip": 64}])
def test_a_tiff_with_an_orientation_is_unsupported(
    tmp_path: Path, rng: np.random.Generator, orientation: int, options: dict[str, object]
) -> None:
    path = tmp_path / "a.tif"
    tags = [(274, 3, 1, orientation, True)]
    write_tiff(path, stained(rng, (300, 400))[0], extratags=tags, **options)
    with pytest.raises(SlideError, match="autorot") as caught:
        open_slide(path)
    assert caught.value.status is Status.UNSUPPORTED


def test_an_impossibly_large_thumbnail_is_refused_before_allocation(
    svs: Callable[..., Path],
) -> None:
    with open_slide(svs()) as slide:
        slide.bounds_level0_px = (0, 0, 1_000_000, 1_000_000)
        tracemalloc.start()
        with pytest.raises(SlideError, match="500 × 500 mm"):
            read_thumbnail(slide, 8.0, 0.5)
        assert tracemalloc.get_traced_memory()[1] < 10e6
        tracemalloc.stop()


def test_a_huge_hdf5_image_is_refused_before_allocation(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (2, 60_000, 60_000, 3), np.uint8, chunks=(1, 64, 64, 3))
    tracemalloc.start()
    with pytest.raises(SlideError, match="60000×60000"):
        open_slide(tmp_path / "a.h5#0", "patches")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def _external_values(folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(8 * 8 * 3))
    with h5py.File(folder / "a.h5", "w") as file:
        place = [("secret", 0, 8 * 8 * 3)]
        file.create_dataset("x", (1, 8, 8, 3), np.uint8, external=place)


def _external_link(folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as file:
        file["y"] = np.zeros((1, 8, 8, 3), np.uint8)
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = h5py.ExternalLink("other.h5", "y")


def _virtual(folder: Path) -> None:
    _external_link(folder)
    layout = h5py.VirtualLayout((1, 8, 8, 3), np.uint8)
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "y", (1, 8, 8, 3))
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_virtual_dataset("x", layout)


@pytest.mark.parametrize("write", [_external_values, _external_link, _virtual])
def test_hdf5_links_to_other_files_are_refused(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path)
    with pytest.raises(SlideError, match="not followed") as caught:
        open_slide(tmp_path / "a.h5#0", "patches")
    assert caught.value.status is Status.UNREADABLE


def test_a_tiff_with_a_false_huge_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages.first.tags[name].overwrite(60_000)
    with pytest.raises(SlideError), open_slide(path) as slide:
        slide.read_region(0, 0, 0, (64, 64))
        read_thumbnail(slide, 16.0, 0.5)
