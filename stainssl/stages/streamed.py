"""Tiles read from the slides of a part while they are embedded, instead of from a pixel store."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
import numpy.typing as npt
import pandas as pd

from stainssl.plan.slides import PixelsJob
from stainssl.runtime.parallel import TimeSpent
from stainssl.runtime.prefetch import prefetched
from stainssl.stages.pixels import encoded_slides
from stainssl.stores.pixels import SlidePixels


class StreamedTiles:
    """The tiles that a part's pixel store would have, in the same order and the same encoding.

    They are encoded as in the store, so that embeddings are the same. A slide is read completely
    before its first tile is used, since one that cannot be read is left out; the next slides are
    read meanwhile.

    Attributes:
        slide_id: names of the slides that have been read; complete after `blocks`.
        size_px: side of a tile in px.
        mpp: pixel size of the tiles in µm/px.
        spent: time spent on reading and encoding.
    """

    def __init__(self, job: PixelsJob, tiles: pd.DataFrame) -> None:
        """Read nothing yet.

        Args:
            job: the job that would write the store.
            tiles: table of the part's tiles.
        """
        self.slide_id: list[str] = []
        self.size_px, self.mpp = job.tiling.size, job.tiling.mpp
        self.spent = TimeSpent()
        self._job, self._tiles = job, tiles
        self._numbers: list[npt.NDArray[np.int32]] = []

    def blocks(self, size: int) -> Iterator[list[bytes]]:
        """Read all slides; yield the JPEGs of their tiles in order, `size` at a time."""
        slides = prefetched(encoded_slides(self._job, self._tiles, self.spent, False), depth=1)
        jpegs = chain.from_iterable(map(self._listed, slides))
        while block := list(islice(jpegs, size)):
            yield block

    def _listed(self, slide: SlidePixels) -> Iterator[bytes]:
        """Note the tiles of a slide and return their JPEGs."""
        self.slide_id.append(slide.slide_id)
        self._numbers.append(slide.tile)
        return iter(slide.jpeg)

    @property
    def slide(self) -> npt.NDArray[np.intp]:
        """(N,) index of each tile's slide in `slide_id`; complete after `blocks`."""
        return np.repeat(np.arange(len(self._numbers)), list(map(len, self._numbers)))

    @property
    def tile(self) -> npt.NDArray[np.int32]:
        """(N,) tile number within the slide; complete after `blocks`."""
        return np.concatenate([np.empty(0, np.int32), *self._numbers])
