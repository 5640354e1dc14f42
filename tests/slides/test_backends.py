"""All readers read the same pixels and metadata, and each format has a reader."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import glymur
import imagecodecs
import numpy as np
import pydicom
import pytest
import tifffile
import zarr
from pydicom.encaps import encapsulate

from stainssl.errors import SlideError, Status
from stainssl.slides.readers import FORMATS, READERS, open_slide
from stainssl.slides.scale import resolve_mpp
from tests.slides.conftest import stained

REAL = [
    "CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs", "boxes.tiff",
    "boxes-dicom/boxes_0.dcm",
]  # fmt: skip


def test_every_reader_is_used_by_a_format() -> None:
    assert set(FORMATS.values()) == set(READERS)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("reader", ["tiff", "tiatoolbox", "fastslide"])
def test_readers_agree_on_real_slides(real_data: Path, name: str, reader: str) -> None:
    """Mean difference at most one grey level, where a level's px and level-0 px coincide."""
    path = real_data / "slides" / name
    with open_slide(path, reader) as one, open_slide(path, "openslide") as other:
        for level, (width, height) in enumerate(one.level_sizes_px):
            assert one.level_sizes_px[level] == other.level_sizes_px[level]
            assert one.downsamples[level] == pytest.approx(other.downsamples[level])
            size = min(width, 600), min(height, 600)
            ours = one.read_region(0, 0, level, size).astype(int)
            theirs = other.read_region(0, 0, level, size)
            assert np.abs(ours - theirs)[1:-1, 1:-1].mean() <= 1
        assert one.bounds_level0_px == other.bounds_level0_px
        if "format" in other.mpp_sources:
            assert one.mpp_sources["format"] == pytest.approx(other.mpp_sources["format"])


CODECS = {
    "JPEG2000Lossless": partial(imagecodecs.jpeg2k_encode, level=0, codecformat="j2k"),
    "JPEGLSLossless": imagecodecs.jpegls_encode,
}


@pytest.mark.parametrize(
    ("syntax", "reader"), [("JPEG2000Lossless", "openslide"), ("JPEGLSLossless", "tiatoolbox")]
)
def test_dicom_with_another_codec_is_read_the_same(
    real_data: Path, tmp_path: Path, syntax: str, reader: str
) -> None:
    source = real_data / "slides" / "boxes-dicom"
    for path in source.iterdir():
        data = pydicom.dcmread(path)
        data.PixelData = encapsulate([CODECS[syntax](np.ascontiguousarray(data.pixel_array))])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        data.save_as(tmp_path / path.name)
    name = "boxes_0.dcm"
    with open_slide(tmp_path / name) as one, open_slide(source / name) as other:
        assert one.reader == reader
        assert one.mpp == pytest.approx(other.mpp)
        (size,) = one.level_sizes_px
        assert np.array_equal(one.read_region(0, 0, 0, size), other.read_region(0, 0, 0, size))


def picture() -> np.ndarray:
    return stained(np.random.default_rng(0), (512, 640))[0]


def ome_tiff(path: Path) -> Path:
    units = {f"PhysicalSize{axis}{kind}": value for axis in "XY" for kind, value in
             (("", 0.5), ("Unit", "µm"))}  # fmt: skip
    tiles = {"photometric": "rgb", "tile": (128, 128), "compression": "jpeg"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(picture(), subifds=1, metadata={"axes": "YXS", **units}, **tiles)
        writer.write(picture()[::2, ::2], subfiletype=1, **tiles)
    return path


def ngff(path: Path) -> Path:
    group = zarr.create_group(path, zarr_format=2)
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    axes.append({"name": "c", "type": "channel"})
    datasets = []
    for level in (0, 1):
        pixels = picture()[:: 2**level, :: 2**level]
        group.create_array(str(level), data=pixels, chunks=(128, 128, 3))
        scale = [0.5 * 2**level, 0.5 * 2**level, 1.0]
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": scale}],
            }
        )
    channels = [
        {"label": n, "color": "FFFFFF", "window": {"start": 0, "end": 255, "min": 0, "max": 255}}
        for n in "rgb"
    ]
    group.attrs.update(
        {
            "multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}],
            "omero": {"name": "a", "id": 1, "version": "0.4", "channels": channels,
                      "rdefs": {"defaultZ": 0, "model": "color"}},
            "_ARRAY_DIMENSIONS": ["y", "x", "c"],
        }
    )  # fmt: skip
    return path


def jp2(path: Path) -> Path:
    data = imagecodecs.jpeg2k_encode(picture(), level=0, codecformat="jp2", reversible=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "make", "mpp"),
    [("a.ome.tif", ome_tiff, 0.5), ("renamed.tif", ome_tiff, 0.5), ("a.jp2", jp2, None),
     ("a.zarr", ngff, 0.5)],
)  # fmt: skip
def test_formats_that_openslide_lacks_are_read_by_tiatoolbox(
    tmp_path: Path, name: str, make: object, mpp: float | None
) -> None:
    if make is jp2 and glymur.version.openjpeg_version == "0.0.0":
        pytest.skip("no OpenJPEG library (Debian: libopenjp2-7), which tiatoolbox reads JP2 with")
    path = make(tmp_path / name)  # type: ignore[operator]
    with open_slide(path) as slide:
        assert slide.reader == "tiatoolbox"
        assert slide.level_sizes_px[0] == (640, 512)
        if mpp is None:
            with pytest.raises(SlideError) as caught:
                resolve_mpp(None, slide)
            assert caught.value.status is Status.NO_MPP
        else:
            assert resolve_mpp(None, slide)[0] == pytest.approx(mpp)
        found = slide.read_region(-10, 100, 0, (300, 200))
        assert (found[:, :10] == 255).all()
        assert np.abs(found[:, 10:].astype(int) - picture()[100:300, :290]).mean() <= 4
        if len(slide.downsamples) > 1:  # only level 0 of NGFF is read
            coarse = slide.read_region(200, 100, 1, (100, 100))
            assert np.abs(coarse.astype(int) - picture()[100:300:2, 200:400:2]).mean() <= 8
