"""Write an image as a pyramidal TIFF in the style of Aperio SVS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

TILE_PX = 256
DOWNSAMPLE = 4
THUMBNAIL_PX = 768


def _description(image: np.ndarray, scale: str, quality: int) -> str:
    h, w = image.shape[:2]
    return (
        "Aperio Image Library v12.0.0 stainssl demo\r\n"
        f"{w}x{h} [0,0 {w}x{h}] ({TILE_PX}x{TILE_PX}) JPEG/YCbCr Q={quality}{scale}"
    )


def write_svs(
    path: Path, image: np.ndarray, *, quality: int, mpp: float | None, magnification: int | None
) -> None:
    """Write an image with a thumbnail and two levels, full size and 4 times smaller.

    Args:
        path: file to write.
        image: (h, w, 3) uint8 RGB.
        quality: JPEG quality of the tiles, 1 to 100.
        mpp: µm/px of level 0; None: no scale and no resolution in the file.
        magnification: magnification of the objective (`AppMag`); None: not in the file.
    """
    scale = "" if magnification is None else f"|AppMag = {magnification}"
    scale += "" if mpp is None else f"|MPP = {mpp:g}"
    description = _description(image, scale, quality)
    h, w = image.shape[:2]
    shrink = min(1.0, THUMBNAIL_PX / max(h, w))
    thumbnail = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    level = cv2.resize(image, (w // DOWNSAMPLE, h // DOWNSAMPLE), interpolation=cv2.INTER_AREA)
    jpeg: dict[str, Any] = {
        "photometric": "rgb",  # stored as YCbCr
        "compression": "jpeg",
        "compressionargs": {"level": quality},
        "metadata": None,
        "software": False,
        "maxworkers": 1,
    }
    if mpp is not None:
        jpeg |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tile: dict[str, Any] = {"tile": (TILE_PX, TILE_PX)}
    with tifffile.TiffWriter(path, byteorder="<") as writer:
        writer.write(image, description=description, **tile, **jpeg)
        writer.write(thumbnail, description=description, **{**jpeg, "resolution": None})
        writer.write(level, description=description, **tile, **{**jpeg, "resolution": None})
