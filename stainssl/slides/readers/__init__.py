"""Opening slides: the registry of readers, each of which is one module, and `open_slide`."""

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
"""Name in the config → module with `recognises(path) -> bool` and `open_file(path) -> Slide`. The
order is that in which `auto` tries them."""

ON_DEMAND: dict[str, tuple[str, ...]] = {
    "tiatoolbox": (".ome.tif", ".ome.tiff", ".zarr", ".jp2", ".j2k"),
    "fastslide": (".czi", ".vsi", ".ets", ".isyntax", ".i2syntax", ".qptiff"),
}
"""Reader that imports the library of the same name only when needed → suffixes of its files."""

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
"""Format → key of `READERS` by which `auto` reads it."""


def _open_first(path: Path) -> Slide:
    """Open a slide by the first reader that recognises it and does not refuse it as unsupported."""
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
            refused = error  # the last reader's message has the best advice
    raise refused or SlideError(Status.UNSUPPORTED, what_it_is(path))


def open_slide(path: Path | str, reader: str = "auto") -> Slide:
    """Open a slide, after checking that the file is not truncated.

    Args:
        path: slide file (a folder for NGFF).
        reader: `auto` or a key of `READERS`.

    Returns:
        The open slide, a context manager that closes it.

    Raises:
        SlideError: status `unsupported`, `unreadable` or `truncated`, with a message in `detail`.
        StainsslError: unknown reader, or its library cannot be imported.
        OSError: the file is missing, or the disk or mount failed.
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
