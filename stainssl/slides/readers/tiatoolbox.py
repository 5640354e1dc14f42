"""Reader `tiatoolbox`: OME-TIFF, NGFF, JPEG 2000 files, and DICOM that OpenSlide cannot read.

tiatoolbox imports torch (some seconds and 400 MB), and is therefore imported only when needed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from defusedxml.ElementTree import fromstring

from stainssl.errors import SlideError, Status
from stainssl.extras import advice
from stainssl.slides.errors import translate_errors
from stainssl.slides.padding import read_padded
from stainssl.slides.pixel_size import anisotropy, mean_mpp, of_size
from stainssl.slides.slide import Slide

JP2 = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")  # JP2 file, raw codestream
DICOM, DICOM_AT = b"DICM", 128
NGFF_FILES = (".zattrs", "zarr.json")
UM_OBJECTIVE_POWER = 10.0  # as in the reader `openslide`


def _kind(path: Path) -> str:
    """Format by content: "ngff", "jp2", "dicom", "ome-tiff", or "" for any other."""
    if path.is_dir():
        return "ngff" if any((path / name).is_file() for name in NGFF_FILES) else ""
    with path.open("rb") as file:
        head = file.read(DICOM_AT + len(DICOM))
    if head.startswith(JP2):
        return "jp2"
    if head[DICOM_AT:] == DICOM:
        return "dicom"
    if head[:2] not in (b"II", b"MM"):
        return ""
    try:
        with tifffile.TiffFile(path) as tiff:
            return "ome-tiff" if tiff.is_ome else ""
    except Exception:  # tifffile raises many kinds for a damaged directory
        return ""


def recognises(path: Path) -> bool:
    """Whether the content is NGFF, JPEG 2000, OME-TIFF, or DICOM that OpenSlide cannot open."""
    kind = _kind(path)
    return kind != "" and (kind != "dicom" or not _is_openslides(path))


def _is_openslides(path: Path) -> bool:
    try:
        openslide.OpenSlide(path).close()
    except openslide.OpenSlideError:
        return False
    return True


def _reader(path: Path) -> Any:
    """Open the file with tiatoolbox's reader for its content, not for its suffix."""
    try:
        from tiatoolbox.wsicore import wsireader
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "tiatoolbox":
            raise
        raise SlideError(
            Status.UNSUPPORTED,
            f"{path.name} is read by tiatoolbox, which is not installed: {advice('tiatoolbox')}",
        ) from error

    # It warns of missing metadata through the root logger; here that becomes a status.
    wsireader.logger = logging.getLogger("tiatoolbox")
    wsireader.logger.setLevel(logging.ERROR)
    kinds = {
        "ngff": wsireader.NGFFWSIReader,
        "jp2": wsireader.JP2WSIReader,
        "dicom": wsireader.DICOMWSIReader,
        "ome-tiff": wsireader.TIFFWSIReader,
    }
    kind = _kind(path)
    return kinds[kind](path) if kind else wsireader.WSIReader.open(path)


def open_file(path: Path) -> Slide:
    """Open a slide.

    Raises:
        SlideError: `unsupported` or `unreadable`.
        StainsslError: tiatoolbox is installed, but cannot be imported.
        OSError: the disk or mount failed.
    """
    with translate_errors(path, "opening"):
        return ToolboxFile(path, _reader(path))


def _stated_mpp(path: Path, info: Any) -> tuple[float | None, float | None]:
    """µm/px of x and y; for OME-TIFF from its metadata, as tiatoolbox 2.1.3 ignores the unit."""
    if _kind(path) == "ome-tiff":
        return _ome_mpp(path)
    if info.mpp is None:
        return None, None
    x, y = (float(value) for value in info.mpp)
    return x, y


def _ome_mpp(path: Path) -> tuple[float | None, float | None]:
    """µm/px of x and y of the first image of an OME-TIFF; None if no length is stated."""
    with tifffile.TiffFile(path) as file:
        root = fromstring(file.ome_metadata or "<OME/>")
    pixels = next((one for one in root.iter() if one.tag.endswith("}Pixels")), None)
    if pixels is None:
        return None, None
    x, y = (
        of_size(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit"))
        for axis in "XY"
    )
    return x, y


class ToolboxFile(Slide):
    """A slide opened by tiatoolbox. See `stainssl.slides.slide.Slide`."""

    reader = "tiatoolbox"

    def __init__(self, path: Path, opened: Any) -> None:
        self.path, self._opened = path, opened
        info = opened.info
        named = str(info.vendor).lower()
        self.vendor = (_kind(path) or "unknown") if named in ("", "none") else named
        # For NGFF, tiatoolbox 2.1.3 gives one downsample, and reads other levels at a wrong size.
        known = info.level_dimensions[: len(info.level_downsamples)]
        self.level_sizes_px = [(int(w), int(h)) for w, h in known]
        whole = self.level_sizes_px[0]
        self.downsamples = [(whole[0] / w + whole[1] / h) / 2 for w, h in self.level_sizes_px]
        self.bounds_level0_px = (0, 0, *self.level_sizes_px[0])
        self.objective_power = float(info.objective_power) if info.objective_power else None
        x, y = _stated_mpp(path, info)
        self.anisotropy = anisotropy(x, y)
        self.mpp_sources: dict[str, float] = {}
        if (mpp := mean_mpp(x, y)) is not None:  # the objective power may be derived from it
            self.mpp_sources = {"format": mpp}
        elif self.objective_power and info.mpp is None:
            self.mpp_sources = {"objective-power": UM_OBJECTIVE_POWER / self.objective_power}

    def read_region(
        self, x_level0_px: int, y_level0_px: int, level: int, size_px: tuple[int, int]
    ) -> np.ndarray:
        """Read a rectangle of a level; see `Slide.read_region`."""
        downsample = self.downsamples[level]

        def read(x: int, y: int, width: int, height: int) -> np.ndarray:
            place = round(x * downsample), round(y * downsample)
            return np.asarray(
                self._opened.read_rect(place, (width, height), resolution=level, units="level")
            )

        with translate_errors(
            self.path, f"reading level {level} at x {x_level0_px}, y {y_level0_px}"
        ):
            corner = round(x_level0_px / downsample), round(y_level0_px / downsample)
            image = read_padded(read, corner, size_px, self.level_sizes_px[level])
        if image.shape[2] != 3:
            raise SlideError(Status.UNSUPPORTED, f"{self.path.name} is not RGB.")
        return image

    def close(self) -> None:
        """Release the reader; tiatoolbox closes its files when it is garbage collected."""
        self._opened = None
