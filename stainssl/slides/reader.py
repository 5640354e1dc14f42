"""The one way to open a slide: what a reader must offer, and which readers there are."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from stainssl.slides.faults import blamed
from stainssl.slides.scale import first_source, read_thumbnail
from stainssl.slides.truncation import shortfall
from stainssl.status import SlideError, StainsslError, Status

READERS: dict[str, str] = {
    "tiff": "stainssl.slides.tiff_reader",
    "tiatoolbox": "stainssl.slides.tiatoolbox_reader",
    "openslide": "stainssl.slides.openslide_reader",
    "patches": "stainssl.slides.patches",
    "fastslide": "stainssl.slides.fastslide_reader",
}
"""Config word → module with `recognises(path) -> bool` and `open_file(path) -> Slide`; `auto` asks
them in this order."""

FORMATS: dict[str, str] = {
    "SVS, tiled TIFF (JPEG)": "tiff",
    "SVS (JPEG 2000), other tiled TIFF": "openslide",
    "NDPI, MRXS, SCN, BIF, VMS, SVSLIDE, Philips and Ventana TIFF": "openslide",
    "DICOM (JPEG, JPEG 2000)": "openslide",
    "DICOM that OpenSlide cannot open (JPEG-LS, RLE)": "tiatoolbox",
    "OME-TIFF, NGFF (zarr), JPEG 2000 (jp2)": "tiatoolbox",
    "CZI, VSI, iSyntax, QPTIFF": "fastslide",
    "PNG, JPEG, BMP": "patches",
}
"""Format → the key of `READERS` that `auto` reads it with."""


class Slide(Protocol):
    """An open slide, used by one thread at a time.

    Planes: level-0 pixels, and the pixels of a level.
    """

    path: Path
    reader: str
    vendor: str
    level_sizes_px: list[tuple[int, int]]  # (w, h) of every level, finest first
    downsamples: list[float]  # level-0 px in a px of the level
    bounds_level0_px: tuple[int, int, int, int]  # x, y, w, h of what was scanned
    mpp_sources: dict[str, float]  # "format", "tiff-resolution", "objective-power" → µm/px
    objective_power: float | None

    @property
    def mpp(self) -> float | None:
        """µm in a level-0 px by the first of `mpp_sources`, None where there is none."""
        return first_source(self.mpp_sources)[1]

    @property
    def mpp_source(self) -> str | None:
        """Name of the first of `mpp_sources`, None where there is none."""
        return first_source(self.mpp_sources)[0]

    def read_region(
        self, x_level0_px: int, y_level0_px: int, level: int, size_px: tuple[int, int]
    ) -> np.ndarray:
        """A rectangle of one level; white where it is transparent or outside the slide.

        Args:
            x_level0_px, y_level0_px: its top left corner. Where that is no whole px of the level,
                the nearest one (OpenSlide keeps the fraction and interpolates).
            level: index into `level_sizes_px`.
            size_px: width and height in the level's pixels.

        Returns:
            (h, w, 3) uint8 RGB.

        Raises:
            SlideError: the file's own fault.
            OSError: the machine's or the mount's fault.
        """

    def thumbnail(self, mpp: float) -> np.ndarray:
        """(h, w, 3) uint8 RGB of the bounds at `mpp` µm/px by the slide's own mpp.

        Raises:
            SlideError: `no-mpp`, or the file's own fault.
        """
        if self.mpp is None:
            raise SlideError(Status.NO_MPP, "The slide states no pixel size.")
        return read_thumbnail(self, mpp, self.mpp)

    def close(self) -> None:
        """Free the handle."""


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
            refused = refused or error
    raise refused or SlideError(
        Status.UNSUPPORTED, f"No reader recognises {path.name}: it is not a slide."
    )


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
        raise StainsslError(f"slides.reader is {reader!r}: known are auto, {', '.join(READERS)}.")
    with blamed(path, "opening"):
        short = shortfall(path) if path.is_file() else None
        if short:
            raise SlideError(Status.TRUNCATED, short)
        if reader == "auto":
            return _open_first(path)
        return import_module(READERS[reader]).open_file(path)
