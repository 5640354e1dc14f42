"""The interface of an open slide, common to all readers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import numpy as np


class Slide(ABC):
    """An open slide, which up to `readers` threads may read at the same time.

    Coordinates are in level-0 px or in px of a level, as their names say.
    """

    path: Path
    reader: str
    vendor: str
    level_sizes_px: list[tuple[int, int]]  # (w, h) of every level, finest first
    downsamples: list[float]  # level-0 px per px of each level
    bounds_level0_px: tuple[int, int, int, int]  # x, y, w, h of the scanned area
    mpp_sources: dict[str, float]  # "format", "tiff-resolution", "objective-power" → µm/px
    objective_power: float | None
    readers: int = 1  # threads that may read at the same time
    anisotropy: float = 1.0  # µm/px of the coarser axis over that of the finer one; 1 if unknown

    @property
    def mpp(self) -> float | None:
        """µm/px of level 0 by the first of `mpp_sources`; None if there is none."""
        return next(iter(self.mpp_sources.values()), None)

    @property
    def mpp_source(self) -> str | None:
        """Name of the first of `mpp_sources`; None if there is none."""
        return next(iter(self.mpp_sources), None)

    @abstractmethod
    def read_region(
        self, x_level0_px: int, y_level0_px: int, level: int, size_px: tuple[int, int]
    ) -> np.ndarray:
        """Read a rectangle of a level; white where it is transparent or outside the slide.

        Args:
            x_level0_px, y_level0_px: top left corner. If it is not a whole px of the level, it is
                rounded to the nearest one (OpenSlide keeps the fraction and interpolates).
            level: index into `level_sizes_px`.
            size_px: width and height in px of the level.

        Returns:
            (h, w, 3) uint8 RGB.

        Raises:
            SlideError: the file is damaged or not supported.
            OSError: the disk or mount failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the slide."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
