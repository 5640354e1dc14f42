"""What an open slide offers, whichever library reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import numpy as np


class Slide(ABC):
    """An open slide, read by `readers` threads at a time.

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
    readers: int = 1  # threads that may read at the same time
    anisotropy: float = 1.0  # µm/px of the coarser axis over the finer one, where both are stated

    @property
    def mpp(self) -> float | None:
        """µm in a level-0 px by the first of `mpp_sources`, None where there is none."""
        return next(iter(self.mpp_sources.values()), None)

    @property
    def mpp_source(self) -> str | None:
        """Name of the first of `mpp_sources`, None where there is none."""
        return next(iter(self.mpp_sources), None)

    @abstractmethod
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

    @abstractmethod
    def close(self) -> None:
        """Free the handle."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
