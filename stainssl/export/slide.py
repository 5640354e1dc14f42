"""What of one slide goes to other tools: its tiles' vectors, where they lie, and its scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ExportedSlide:
    """The embedded tiles of one slide.

    Attributes:
        slide_id: its name, which the files are named by.
        encoder: what made the vectors.
        features: (N, D) float16, finite; float32 where they are tiny or huge.
        xy_level0_px: (N, 2) int64, left and top edges of the tiles.
        side_level0_px: side of a tile, a fraction where the scale asks for one.
        level0_mpp: µm in a level-0 px.
        size_level0_px: width and height of the slide.
        tile_px, tile_mpp, overlap_px: side of a tile in px, µm in such a px, px that tiles share.
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
