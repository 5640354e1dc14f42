"""Bags: the tile embeddings of one patient or one slide, and the batches drawn from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from stainssl.stores.spool import Kept

if TYPE_CHECKING:
    from stainssl.mil.centring import Shifted

MOMENT_TILES = 16_384  # of a slide that its moments are taken of; 64 MB at 1,024 features
ID_COLUMNS = {"patient": "patient_id", "slide": "slide_id"}


@dataclass(frozen=True)
class SlideTiles:
    """The usable tiles of one slide under one encoder.

    Attributes:
        features: (n, D) float16, every row finite; in memory, kept in a file, or less a mean.
        tile: (n,) int32 index of the tile in its slide's tile table.
        x_level0_px: (n,) int64 left edge of the tile.
        y_level0_px: (n,) int64 top edge of the tile.
    """

    features: np.ndarray | Kept | Shifted
    tile: np.ndarray
    x_level0_px: np.ndarray
    y_level0_px: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each feature, two (D,) float64; every fold asks for them.

        Of a slide of more than `MOMENT_TILES` tiles as many at most are taken, evenly spaced.
        """
        taken = self.features[:: -(-len(self) // MOMENT_TILES)].astype(np.float32)
        mean = taken.mean(axis=0, dtype=np.float64)
        taken -= mean.astype(np.float32)
        shift = taken.mean(axis=0, dtype=np.float64)  # what rounding left
        return mean, np.square(taken).mean(axis=0, dtype=np.float64) - shift**2


@dataclass(frozen=True)
class Bag:
    """The tiles of one patient (of all their slides, end to end) or of one slide.

    Attributes:
        patient_id: whose tissue it is.
        slide_id: the slide, or "" where the bag is a patient's.
        site: where it was stained and scanned; several sites are joined by "+".
        label: the class index, the number, or the time to the event, with a minus where it is
            censored (at 0 too); -1, or NaN, where it is not known.
        slides: the slides in the bag, in the order of their tiles.
        tiles: one `SlideTiles` a slide.
        columns: clinical features, where a head takes them.
    """

    patient_id: str
    slide_id: str
    site: str
    label: float
    slides: tuple[str, ...]
    tiles: tuple[SlideTiles, ...]
    columns: tuple[float, ...] = ()

    def __len__(self) -> int:
        return sum(len(tiles) for tiles in self.tiles)

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.tiles[0].features.shape[1]

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Features of some tiles.

        Args:
            index: (k,) integer positions in the bag, ascending.

        Returns:
            (k, D) float16.
        """
        if len(index) == len(self) and len(self.tiles) == 1:
            return self.tiles[0].features[:]  # no copy: the common bag, one small slide
        ends = np.cumsum([len(tiles) for tiles in self.tiles])
        cuts = np.searchsorted(index, ends)
        starts = np.concatenate([[0], ends[:-1]])
        pieces = np.split(index, cuts[:-1])
        return np.concatenate(
            [
                tiles.features[piece - start]
                for tiles, piece, start in zip(self.tiles, pieces, starts, strict=True)
            ]
        )

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """All features in blocks of at most `size` tiles, each (k, D) float32."""
        for tiles in self.tiles:
            for start in range(0, len(tiles), size):
                yield tiles.features[start : start + size].astype(np.float32)


def usable(
    features: np.ndarray,
    valid: np.ndarray,
    tile: np.ndarray,
    x_level0_px: np.ndarray,
    y_level0_px: np.ndarray,
) -> SlideTiles:
    """Keep the tiles that were read and embedded.

    Args:
        features: (n, D) float16.
        valid: (n,) bool, true where every feature is finite: asking each of millions of numbers
            again would take several times as long as reading them.
        tile: (n,) integer.
        x_level0_px: (n,) integer.
        y_level0_px: (n,) integer.

    Returns:
        The rows that can be used, in their order; there may be none.
    """
    columns = (
        features,
        np.asarray(tile, np.int32),
        np.asarray(x_level0_px, np.int64),
        np.asarray(y_level0_px, np.int64),
    )
    keep = np.asarray(valid, bool)
    return SlideTiles(*(columns if keep.all() else (values[keep] for values in columns)))


def build(
    slides: pd.DataFrame, level: str, read: Callable[[str], SlideTiles]
) -> tuple[list[Bag], list[str]]:
    """Bags of a task, one a patient or one a slide.

    Args:
        slides: a row per slide with `slide_id`, `patient_id`, `site`, `label` (class index, or
            number).
        level: "patient" or "slide".
        read: gives the usable tiles of a slide.

    Returns:
        The bags in the order in which their ids first appear, and the ids of those that are left
        out because none of their slides has a usable tile.
    """
    bags: list[Bag] = []
    empty: list[str] = []
    for name, rows in slides.groupby(ID_COLUMNS[level], sort=False):
        bag = _bag(rows, level, read)
        if len(bag):
            bags.append(bag)
        else:
            empty.append(str(name))
    return bags, empty


def _bag(rows: pd.DataFrame, level: str, read: Callable[[str], SlideTiles]) -> Bag:
    tiles = {str(slide): read(str(slide)) for slide in rows["slide_id"]}
    tiles = {slide: found for slide, found in tiles.items() if len(found)}
    first = rows.iloc[0]
    return Bag(
        patient_id=str(first["patient_id"]),
        slide_id=str(first["slide_id"]) if level == "slide" else "",
        site="+".join(sorted(set(rows["site"].dropna().astype(str)))),
        label=rows["label"].iloc[0].item(),
        slides=tuple(tiles),
        tiles=tuple(tiles.values()),
    )


def draw(n: int, max_tiles: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of at most `max_tiles` of `n` tiles, without replacement, ascending."""
    if n <= max_tiles:
        return np.arange(n)
    return np.sort(rng.choice(n, max_tiles, replace=False))


def pad(
    bags: Sequence[np.ndarray], memory: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put bags of different length into one tensor.

    Args:
        bags: B arrays (n_i, D) float16.
        memory: float32, one dimension, at least B·N·D long, that the features are written to; new
            memory for every batch costs more than filling it.

    Returns:
        (B, N, D) float32 with N the longest, zero where there is no tile, and the (B, N) bool
        mask that is true where there is one.
    """
    longest = max(len(bag) for bag in bags)
    shape = (len(bags), longest, bags[0].shape[1])
    features = torch.empty(shape) if memory is None else memory[: math.prod(shape)].view(shape)
    mask = torch.zeros(len(bags), longest, dtype=torch.bool)
    for row, bag in enumerate(bags):
        features[row, : len(bag)] = torch.from_numpy(bag)
        features[row, len(bag) :] = 0.0
        mask[row, : len(bag)] = True
    return features, mask


def statistics(bags: Sequence[Bag]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature over the tiles of some bags.

    Returns:
        Two (D,) float32 arrays; a feature that does not vary has the standard deviation 1, so
        that dividing by it is harmless.
    """
    slides = [tiles for bag in bags for tiles in bag.tiles]
    share = np.array([len(tiles) for tiles in slides], float)
    share /= share.sum()
    means, variances = (np.stack(m) for m in zip(*(t.moments for t in slides), strict=True))
    mean = share @ means
    std = np.sqrt(np.maximum(share @ (variances + np.square(means - mean)), 0.0))
    std[std < 1e-6] = 1.0
    return mean.astype(np.float32), std.astype(np.float32)
