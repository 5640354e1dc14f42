"""Small synthetic slides: pyramids as Aperio's SVS and Leica's SCN, and images to put in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

GLASS = (242, 241, 243)
TISSUE = (196, 120, 170)


def write_svs(
    path: Path,
    image: np.ndarray,
    mpp: float | None = 0.5,
    downsamples: tuple[float, ...] = (4,),
    magnification: float | None = None,
    quality: int = 90,
    tile_px: int = 128,
) -> Path:
    """Write `image` (h, w, 3) uint8 RGB as a slide that OpenSlide opens as vendor aperio.

    Args:
        mpp, magnification: written into the image description; None leaves them out.
        downsamples: of the levels below level 0.
    """
    height, width = image.shape[:2]
    description = (
        f"Aperio Image Library v12.0.0\r\n{width}x{height} [0,0 {width}x{height}] "
        f"({tile_px}x{tile_px}) JPEG/RGB Q={quality}"
    )
    description += "" if magnification is None else f"|AppMag = {magnification:g}"
    description += "" if mpp is None else f"|MPP = {mpp:g}"
    jpeg = {"compression": "jpeg", "compressionargs": {"level": quality}, "photometric": "rgb"}
    common = {**jpeg, "description": description, "metadata": None, "tile": (tile_px, tile_px)}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, **common)
        for downsample in downsamples:
            size = max(1, int(width / downsample)), max(1, int(height / downsample))
            writer.write(cv2.resize(image, size, interpolation=cv2.INTER_AREA), **common)
    return path


def write_tiff(path: Path, image: np.ndarray, **options: object) -> Path:
    """Write a tiled TIFF without Aperio's description, which OpenSlide opens as generic-tiff."""
    defaults = {
        "tile": (128, 128),
        "photometric": "rgb",
        "compression": "deflate",
        "metadata": None,
    }
    tifffile.imwrite(path, image, **(defaults | options))
    return path


SCN = """<?xml version='1.0'?>
<scn xmlns='http://www.leica-microsystems.com/scn/2010/10/01' uuid='u'>
<collection name='c' uuid='u' sizeX='{W}' sizeY='{H}'><barcode>x</barcode>
<image name='macro' uuid='m'>{device}<pixels sizeX='{mw}' sizeY='{mh}'>
<dimension sizeX='{mw}' sizeY='{mh}' r='0' ifd='0'/></pixels>
<view sizeX='{W}' sizeY='{H}' offsetX='0' offsetY='0' spacingZ='0'/>{low}</image>
<image name='main' uuid='i'>{device}<pixels sizeX='{w}' sizeY='{h}'>
<dimension sizeX='{w}' sizeY='{h}' r='0' ifd='1'/></pixels>
<view sizeX='{vw}' sizeY='{vh}' offsetX='{x}' offsetY='{y}' spacingZ='0'/>{high}</image>
</collection></scn>"""
SCN_DEVICE = (
    "<creationDate>2013-01-01T00:00:00.00Z</creationDate><device model='Leica SCN400' version='1'/>"
)
SCN_SETTINGS = (
    "<scanSettings><objectiveSettings><objective>{}</objective></objectiveSettings>"
    "<illuminationSettings><numericalAperture>0.65</numericalAperture>"
    "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>"
)


def write_scn(path: Path, image: np.ndarray, corner: tuple[int, int], mpp: float = 0.5) -> Path:
    """Write `image` (h, w, 3) uint8 RGB as a Leica SCN whose bounds begin at `corner`.

    The whole slide is twice as large as the image and its offset.
    """
    (height, width), nm = image.shape[:2], round(mpp * 1000)
    whole = 2 * (width + corner[0]), 2 * (height + corner[1])
    macro = np.full((whole[1] // 16, whole[0] // 16, 3), 240, np.uint8)
    fields = {
        "W": whole[0] * nm, "H": whole[1] * nm, "mw": macro.shape[1], "mh": macro.shape[0],
        "w": width, "h": height, "vw": width * nm, "vh": height * nm,
        "x": corner[0] * nm, "y": corner[1] * nm,
        "device": SCN_DEVICE, "low": SCN_SETTINGS.format(0.6), "high": SCN_SETTINGS.format(20),
    }  # fmt: skip
    common = {
        "compression": "jpeg", "compressionargs": {"level": 90}, "photometric": "rgb",
        "metadata": None, "tile": (128, 128), "resolutionunit": "CENTIMETER",
    }  # fmt: skip
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(macro, description=SCN.format(**fields), resolution=(1250, 1250), **common)
        writer.write(image, description="", resolution=(1e4 / mpp,) * 2, **common)
    return path


def stained(
    rng: np.random.Generator, shape: tuple[int, int], share: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """An image with a disk of noisy tissue on glass, and the disk as (h, w) bool."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    radius = np.sqrt(share * height * width / np.pi)
    inside = (x - width / 2) ** 2 + (y - height / 2) ** 2 < radius**2
    image = np.where(inside[..., None], TISSUE, GLASS) + rng.normal(0, 6, (height, width, 1))
    return np.clip(image, 0, 255).astype(np.uint8), inside


@pytest.fixture
def svs(tmp_path: Path, rng: np.random.Generator) -> Callable[..., Path]:
    """Write a slide with tissue: `svs("name", shape=(h, w), **options of write_svs)`."""

    def make(name: str = "slide", shape: tuple[int, int] = (768, 1024), **options: object) -> Path:
        image = options.pop("image", None)
        picture = stained(rng, shape)[0] if image is None else image
        return write_svs(tmp_path / f"{name}.svs", picture, **options)  # type: ignore[arg-type]

    return make
