"""Decoding of JPEG tiles of TIFFs by libjpeg-turbo, with its warnings treated as errors.

After a damaged byte the rest of a tile has wrong colors, of which libjpeg only warns.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

SOI, EOI = b"\xff\xd8", b"\xff\xd9"  # start and end of image
JFIF = SOI + b"\xff\xe0"  # start of a JFIF file, whose channels are YCbCr
# Adobe segment with transform 0: the channels are RGB, whatever their ids.
IS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


def decode_tile(
    data: bytes, tables: bytes | None, is_rgb: bool, size_px: tuple[int, int]
) -> np.ndarray:
    """Decode one tile or strip.

    Args:
        data: JPEG of the tile, without the tables if they are stored separately.
        tables: the TIFF's `JPEGTables`, shared by all tiles of a page.
        is_rgb: whether the page's photometric interpretation is RGB; ignored for a JFIF tile.
        size_px: width and height.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        ValueError: libjpeg reports an error or a warning, or the JPEG has another size. A larger
            one is refused before memory is allocated for it.
    """
    if not data.startswith(SOI):
        raise ValueError("a tile is not a JPEG")
    out = np.empty((size_px[1], size_px[0], 3), np.uint8)
    start = (tables or SOI).removesuffix(EOI)
    mark = IS_RGB if is_rgb and not data.startswith(JFIF) else b""
    whole = b"".join((start, mark, memoryview(data)[len(SOI) :]))
    tile = simplejpeg.decode_jpeg(whole, "RGB", buffer=out, strict=True)
    if tile.shape != out.shape:
        raise ValueError(f"a tile has {tile.shape} px instead of {out.shape}")
    return out
