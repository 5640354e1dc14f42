"""Bags: the tile embeddings of one patient or one slide, and batches of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from stainssl.stores.spool import SpooledArray

if TYPE_CHECKING:
    from stainssl.mil.centring import CentredArray

MOMENT_TILES = 16_384  # tiles per slide for mean and variance at most; 64 MB at 1,024 features
ID_COLUMNS = {"patient": "patient_id", "slide": "slide_id"}


@dataclass(frozen=True)
class SlideTiles:
    """The usable tiles of one slide, embedded by one encoder.

    Attributes:
        features: (n, D) float16, all finite: in memory, in a temporary file (`SpooledArray`), or
            with the mean of the site subtracted (`CentredArray`).
        tile: (n,) int32 index of the tile in its slide's tile table.
        x_level0_px: (n,) int64 left edge of the tile.
        y_level0_px: (n,) int64 top edge of the tile.
    """

    features: np.ndarray | SpooledArray | CentredArray
    tile: np.ndarray
    x_level0_px: np.ndarray
    y_level0_px: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each feature, two (D,) float64; cached, since every fold uses them.

        They are computed from at most `MOMENT_TILES` tiles, evenly spaced.
        """
        taken = self.features[:: -(-len(self) // MOMENT_TILES)].astype(np.float32)
        mean = taken.mean(axis=0, dtype=np.float64)
        taken -= mean.astype(np.float32)
        shift = taken.mean(axis=0, dtype=np.float64)  # rounding error of the float32 mean
        return mean, np.square(taken).mean(axis=0, dtype=np.float64) - shift**2


@dataclass(frozen=True)
class Bag:
    """The tiles of one slide, or of all slides of one patient.

    Attributes:
        patient_id: the patient.
        slide_id: the slide; "" if the bag is a patient.
        site: where the slides were stained and scanned; several sites are joined by "+".
        label: class index, number, or time to the event, negative if censored (-0.0 at time 0);
            several labels are one number (see `MultiLabel`). Unknown: `Target.unknown`.
        slides: the slides of the bag, in the order of `tiles`.
        tiles: one `SlideTiles` per slide.
        columns: clinical features, for heads that accept them.
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
        """Number D of features."""
        return self.tiles[0].features.shape[1]

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Features of some tiles.

        Args:
            index: (k,) integer positions in the bag, ascending.

        Returns:
            (k, D) float16.
        """
        if len(index) == len(self) and len(self.tiles) == 1:
            return self.tiles[0].features[:]  # no copy in the common case: one small slide
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
        """Yield all features in blocks of at most `size` tiles, each (k, D) float32."""
        for tiles in self.tiles:
            for start in range(0, len(tiles), size):
                yield tiles.features[start : start + size].astype(np.float32)


def valid_tiles(
    features: np.ndarray,
    valid: np.ndarray,
    tile: np.ndarray,
    x_level0_px: np.ndarray,
    y_level0_px: np.ndarray,
) -> SlideTiles:
    """Keep the tiles that were read and embedded.

    Args:
        features: (n, D) float16.
        valid: (n,) bool, true where all features are finite; from the store, since checking
            millions of numbers again would take several times as long as reading them.
        tile: (n,) integer index in the tile table.
        x_level0_px: (n,) integer left edge.
        y_level0_px: (n,) integer top edge.

    Returns:
        The valid tiles in their order, possibly none.
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
    """Build the bags of a task, one per patient or per slide.

    Args:
        slides: a row per slide with `slide_id`, `patient_id`, `site` and `label` (see `Bag.label`).
        level: "patient" or "slide".
        read: returns the usable tiles of a slide.

    Returns:
        The bags in the order in which their ids first appear, and the ids of patients or slides
        that are left out because they have no usable tile.
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


def sample_tiles(n: int, max_tiles: int, rng: np.random.Generator) -> np.ndarray:
    """Sample positions of at most `max_tiles` of `n` tiles, without replacement, ascending."""
    if n <= max_tiles:
        return np.arange(n)
    return np.sort(rng.choice(n, max_tiles, replace=False))


def pad(
    bags: Sequence[np.ndarray], memory: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad bags of different length to one tensor.

    Args:
        bags: B arrays (n_i, D) float16.
        memory: buffer for the features, one-dimensional float32 of at least B·N·D elements;
            allocating one for every batch costs more than filling it.

    Returns:
        (B, N, D) float32 features, zero at padding, with N the length of the longest bag, and a
        (B, N) bool mask that is true where there is a tile.
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
        Two (D,) float32 arrays. The standard deviation of a constant feature is set to 1, so that
        it can be divided by.
    """
    slides = [tiles for bag in bags for tiles in bag.tiles]
    share = np.array([len(tiles) for tiles in slides], float)
    share /= share.sum()
    means, variances = (np.stack(m) for m in zip(*(t.moments for t in slides), strict=True))
    mean = share @ means
    std = np.sqrt(np.maximum(share @ (variances + np.square(means - mean)), 0.0))
    std[std < 1e-6] = 1.0
    return mean.astype(np.float32), std.astype(np.float32)
