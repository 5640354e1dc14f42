"""Reader `fastslide`: CZI, VSI, iSyntax and QPTIFF, read in a separate process.

fastslide 0.8.1 calls libjpeg with its default error handler: a damaged JPEG tile ends the process
(or hangs it in the destructor of its thread pool). It therefore never runs in the main process,
and `auto` uses it only for formats that no other reader supports.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stainssl.errors import SlideError, Status
from stainssl.slides.errors import translate_errors
from stainssl.slides.padding import read_padded
from stainssl.slides.pixel_size import anisotropy
from stainssl.slides.readers import ON_DEMAND
from stainssl.slides.readers.isolated import IsolatedFile
from stainssl.slides.slide import Slide

UM_OBJECTIVE_POWER = 10.0  # as in the reader `openslide`
CACHE_BYTES = 64 * 2**20


def recognises(path: Path) -> bool:
    """Whether the file's suffix is that of a format that only fastslide reads."""
    return path.name.lower().endswith(ON_DEMAND["fastslide"])


def open_file(path: Path) -> Slide:
    """Open a slide in a separate process.

    Raises:
        SlideError: `unsupported` or `unreadable`, also if fastslide crashes or hangs.
        StainsslError: fastslide is installed, but cannot be imported.
        OSError: the disk or mount failed.
    """
    return IsolatedFile(path, "fastslide", FastFile)


class FastFile(Slide):
    """A slide opened by fastslide. See `stainssl.slides.slide.Slide`."""

    reader = "fastslide"

    def __init__(self, path: Path) -> None:
        self.path = path
        with translate_errors(path, "opening"):
            import fastslide

            self._slide = fastslide.FastSlide.from_file_path(path, cache=CACHE_BYTES)
            sizes, downsamples = self._slide.level_dimensions, self._slide.level_downsamples
        if not sizes:
            raise SlideError(Status.UNSUPPORTED, f"fastslide finds no image in {path.name}.")
        if self._slide.dtype != "uint8" or self._slide.num_channels != 3:
            raise SlideError(
                Status.UNSUPPORTED,
                f"{path.name} has {self._slide.num_channels} channels of {self._slide.dtype}: "
                "only 8-bit RGB is supported.",
            )
        self.vendor = str(self._slide.format).lower()
        self.level_sizes_px = [(int(w), int(h)) for w, h in sizes]
        self.downsamples = [float(one) for one in downsamples]
        (x, y), (width, height) = self._slide.bounds
        whole = (0, 0, *self.level_sizes_px[0])
        self.bounds_level0_px = (x, y, width, height) if width and height else whole
        self._state_scale()

    def _state_scale(self) -> None:
        x, y = (float(value) for value in self._slide.mpp)
        mpp, self.anisotropy = (x + y) / 2, anisotropy(x, y)
        power = float(self._slide.properties.get("objective_magnification") or 0)
        name = "tiff-resolution" if "generic" in self.vendor else "format"
        found = {name: mpp, "objective-power": UM_OBJECTIVE_POWER / power if power else 0.0}
        self.mpp_sources = {key: one for key, one in found.items() if one > 0}
        self.objective_power = power or None

    def read_region(
        self, x_level0_px: int, y_level0_px: int, level: int, size_px: tuple[int, int]
    ) -> np.ndarray:
        """Read a rectangle of a level; see `Slide.read_region`."""

        def read(x: int, y: int, width: int, height: int) -> np.ndarray:
            image = self._slide.read_region((x, y), level, (width, height))
            return np.asarray(image.to_interleaved().numpy())

        with translate_errors(
            self.path, f"reading level {level} at x {x_level0_px}, y {y_level0_px}"
        ):
            downsample = self.downsamples[level]
            corner = round(x_level0_px / downsample), round(y_level0_px / downsample)
            return read_padded(read, corner, size_px, self.level_sizes_px[level])

    def close(self) -> None:
        """Free the handle."""
        self._slide.close()
