"""The one way to open a slide, and which readers there are: a reader is one module and one line."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from stainssl.errors import SlideError, StainsslError, Status
from stainssl.slides.errors import translate_errors
from stainssl.slides.not_slides import missing_companion, what_it_is
from stainssl.slides.slide import Slide
from stainssl.slides.truncation import shortfall

READERS: dict[str, str] = {
    "tiff": "stainssl.slides.readers.tiff",
    "tiatoolbox": "stainssl.slides.readers.tiatoolbox",
    "openslide": "stainssl.slides.readers.openslide",
    "patches": "stainssl.slides.readers.patches",
    "fastslide": "stainssl.slides.readers.fastslide",
    "tifffile": "stainssl.slides.readers.tifffile",
}
"""Config word → module with `recognises(path) -> bool` and `open_file(path) -> Slide`; `auto` asks
them in this order."""

ON_DEMAND: dict[str, tuple[str, ...]] = {
    "tiatoolbox": (".ome.tif", ".ome.tiff", ".zarr", ".jp2", ".j2k"),
    "fastslide": (".czi", ".vsi", ".ets", ".isyntax", ".i2syntax", ".qptiff"),
}
"""Reader, which is also the library that it imports to open a slide → how its files are called."""

FORMATS: dict[str, str] = {
    "SVS, tiled TIFF (JPEG)": "tiff",
    "SVS (JPEG 2000), other tiled TIFF": "openslide",
    "NDPI, MRXS, SCN, BIF, VMS, SVSLIDE, Philips and Ventana TIFF": "openslide",
    "DICOM (JPEG, JPEG 2000)": "openslide",
    "DICOM that OpenSlide cannot open (JPEG-LS, RLE)": "tiatoolbox",
    "OME-TIFF, NGFF (zarr), JPEG 2000 (jp2)": "tiatoolbox",
    "CZI, VSI, iSyntax, QPTIFF": "fastslide",
    "PNG, JPEG, BMP": "patches",
    "ordinary TIFF: strips, LZW, Fiji, JPEG 2000, WebP, PNG in TIFF": "tifffile",
}
"""Format → the key of `READERS` that `auto` reads it with."""


def _open_first(path: Path) -> Slide:
    """The slide by the first reader that recognises it and does not call it unsupported."""
    refused: SlideError | None = None
    for name in READERS.values():
        module = import_module(name)
        if not module.recognises(path):
            continue
        try:
            return module.open_file(path)
        except SlideError as error:
            if error.status is not Status.UNSUPPORTED:
                raise
            refused = error  # the last reader says best what else to do
    raise refused or SlideError(Status.UNSUPPORTED, what_it_is(path))


def open_slide(path: Path | str, reader: str = "auto") -> Slide:
    """Open a slide, after a check that the file is as long as it says.

    Args:
        path: the slide's file.
        reader: `auto` or a key of `READERS`.

    Returns:
        The open slide; the caller closes it (`contextlib.closing`).

    Raises:
        SlideError: `unsupported`, `unreadable` or `truncated`, with a sentence.
        StainsslError: there is no such reader.
        OSError: the machine's or the mount's fault, a missing file among them.
    """
    path = Path(path)
    if reader != "auto" and reader not in READERS:
        raise StainsslError(f"Unknown slides.reader {reader!r}; known: auto, {', '.join(READERS)}.")
    with translate_errors(path, "opening"):
        short = shortfall(path) if path.is_file() else None
        if short:
            raise SlideError(Status.TRUNCATED, short)
        if absent := missing_companion(path):
            raise SlideError(Status.UNREADABLE, absent)
        if reader == "auto":
            return _open_first(path)
        return import_module(READERS[reader]).open_file(path)
