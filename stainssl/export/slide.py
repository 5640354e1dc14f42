"""Data of one slide that is exported: tile embeddings, coordinates and scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ExportedSlide:
    """The embedded tiles of one slide.

    Attributes:
        slide_id: name of the slide, used in file names.
        encoder: name of the encoder that made the embeddings.
        features: (N, D) finite embeddings; float32 if the encoder's values are too small or too
            large for float16.
        xy_level0_px: (N, 2) int64, left and top of the tiles.
        side_level0_px: side of a tile, not necessarily an integer.
        level0_mpp: µm/px at level 0.
        size_level0_px: width and height of the slide.
        tile_px, tile_mpp, overlap_px: side (px) and scale (µm/px) of a tile, and overlap of
            neighbouring tiles in px of this scale.
    """

    slide_id: str
    encoder: str
    features: npt.NDArray[np.float16] | npt.NDArray[np.float32]
    xy_level0_px: npt.NDArray[np.int64]
    side_level0_px: float
    level0_mpp: float
    size_level0_px: tuple[int, int]
    tile_px: int
    tile_mpp: float
    overlap_px: int

    def __len__(self) -> int:
        return len(self.features)
