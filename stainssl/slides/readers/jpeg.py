"""JPEG tiles of a TIFF by libjpeg-turbo, whose warnings are errors here.

Behind a damaged byte the rest of a tile decodes to wrong colors, and libjpeg only warns.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

SOI, EOI = b"\xff\xd8", b"\xff\xd9"  # the first and the last two bytes of a JPEG
JFIF = SOI + b"\xff\xe0"  # the start of a JPEG that says itself that it is YCbCr
# Adobe's segment with transform 0: the channels are RGB, whatever their ids.
IS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


def decode_tile(
    data: bytes, tables: bytes | None, is_rgb: bool, size_px: tuple[int, int]
) -> np.ndarray:
    """One tile or strip.

    Args:
        data: its JPEG, without the tables where they are apart.
        tables: TIFF's `JPEGTables`, which all tiles of a page share.
        is_rgb: whether the page says that its channels are RGB; JFIF in the tile wins.
        size_px: width and height.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        ValueError: libjpeg has an error or a warning, or the JPEG says that it has another size;
            a larger one is refused before any memory is taken for it.
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
