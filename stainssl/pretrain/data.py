"""The training tiles: read in blocks, shuffled within a buffer, decoded ahead of the network."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stainssl.prefetch import prefetched
from stainssl.status import StainsslError
from stainssl.stores.pixels import Pixels, decode

log = logging.getLogger(__name__)

BLOCK = 64  # tiles of one range read: a few hundred kB of JPEG
BUFFER = 128  # blocks that are shuffled together
CACHE_BYTES = 1 << 30  # decoded tiles that may be kept
Index = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """What one step takes: (B, 3, H, W) uint8 tiles and their (B,) numbers."""

    images: Tensor
    tile: Tensor


class TrainTiles:
    """The tiles of several stores, numbered through from 0 to N − 1.

    Decoded tiles are kept in memory where all of them fit in `cache_bytes`.

    Attributes:
        size_px: side of a tile.
        store: (N,) int32, which store a tile is in.

    Raises:
        StainsslError: no store, stores of different tile sizes, or fewer than two tiles.
    """

    def __init__(
        self, stores: Sequence[Pixels], *, cache_bytes: int = CACHE_BYTES, workers: int = 1
    ) -> None:
        if sizes := {store.size_px for store in stores if len(store)}:
            self.size_px = max(sizes)
        count = sum(len(store) for store in stores)
        if count < 2:
            raise StainsslError(
                f"Contrastive pretraining needs two tiles at least, found {count} in {len(stores)} "
                "part(s). Look at the `qc` tables for the reasons, and at tilings.*.min_tissue."
            )
        if len(sizes) > 1:
            raise StainsslError(f"Training tiles have sides of {sorted(sizes)} px: use one tiling.")
        self._stores = list(stores)
        self._first = np.cumsum([0] + [len(store) for store in stores])
        self.store = np.repeat(np.arange(len(stores), dtype=np.int32), np.diff(self._first))
        self._block_start = _block_starts(self._first)
        self._blocks: OrderedDict[int, list[bytes]] = OrderedDict()
        self._pool = ThreadPoolExecutor(workers) if workers > 1 else None
        fits = count * self.size_px**2 * 3 <= cache_bytes
        self._cache = np.empty((count if fits else 0, self.size_px, self.size_px, 3), np.uint8)
        self._cached = np.zeros(count, bool)
        self._bad = np.zeros(count, bool)

    def __len__(self) -> int:
        return int(self._first[-1])

    def order(self, seed: int, epoch: int) -> Index:
        """The order of an epoch, a permutation of N: blocks are shuffled, then `BUFFER` blocks
        at a time tiles within them."""
        return _order(self._block_start.tobytes(), len(self), seed, epoch)

    def images(self, index: Index) -> Batch:
        """The tiles of `index`, in its order; those that cannot be decoded are left out.

        Raises:
            StainsslError: fewer than two can be decoded.
        """
        absent = index[~self._cached[index] & ~self._bad[index]]
        fresh = dict(zip(absent.tolist(), self._decode(absent), strict=True))
        self._note_bad([tile for tile, image in fresh.items() if image is None])
        good = index[~self._bad[index]]
        if len(good) < 2:
            raise StainsslError(
                f"{len(index) - len(good)} of the {len(index)} tiles of a batch cannot be decoded: "
                "delete the pixels of the training parts and make them again."
            )
        if len(self._cache):
            for tile, image in fresh.items():
                if image is not None:
                    self._cache[tile], self._cached[tile] = image, True
            images = self._cache[good]
        else:
            images = np.stack([fresh[tile] for tile in good.tolist()])
        planes = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        return Batch(planes, torch.from_numpy(good))

    def _note_bad(self, tiles: list[int]) -> None:
        self._bad[tiles] = True
        for tile in tiles:
            slide = self.slide_of(np.array([tile]))[0]
            log.warning("a tile of slide %s cannot be decoded and is left out", slide)

    def slide_of(self, index: Index) -> list[str]:
        """Names of the slides of tiles."""
        return [
            self._stores[s].slide_id[int(self._stores[s].slide[i - self._first[s]])]
            for i, s in zip(index.tolist(), self.store[index].tolist(), strict=True)
        ]

    def _decode(self, index: Index) -> list[npt.NDArray[np.uint8] | None]:
        jpegs = [self._jpeg(tile) for tile in index.tolist()]
        decoded = self._pool.map(self._image, jpegs) if self._pool else map(self._image, jpegs)
        return list(decoded)

    def _image(self, jpeg: bytes) -> npt.NDArray[np.uint8] | None:
        try:
            image = decode(jpeg)
        except ValueError:
            return None
        return image if image.shape == (self.size_px, self.size_px, 3) else None

    def _jpeg(self, tile: int) -> bytes:
        """One JPEG; its block is read whole and kept while it may be needed again."""
        block = int(np.searchsorted(self._block_start, tile, side="right")) - 1
        start = int(self._block_start[block])
        if block not in self._blocks:
            stop = int(np.append(self._block_start, len(self))[block + 1])
            store = int(self.store[start])
            first = int(self._first[store])
            self._blocks[block] = self._stores[store].jpegs(start - first, stop - first)
            if len(self._blocks) > 2 * BUFFER:  # a batch may straddle two buffers
                self._blocks.popitem(last=False)
        return self._blocks[block][tile - start]


def _block_starts(first: Index) -> Index:
    """First tile of each block; a block lies within one store."""
    ranges = [np.arange(a, b, BLOCK) for a, b in pairwise(first)]
    return np.concatenate(ranges).astype(np.int64)


@lru_cache(maxsize=2)
def _order(block_starts: bytes, count: int, seed: int, epoch: int) -> Index:
    start = np.frombuffer(block_starts, np.int64)
    size = np.diff(np.append(start, count))
    rng = np.random.default_rng([seed, epoch])
    blocks = rng.permutation(len(start))
    lengths = size[blocks]
    inner = np.arange(count) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    tiles = np.repeat(start[blocks], lengths) + inner
    buffer = np.repeat(np.arange(len(blocks)) // BUFFER, lengths)
    return tiles[np.lexsort((rng.random(count), buffer))]


class Stream:
    """The batches of a whole run, from any step on: a step's batch depends on its number alone.

    Args:
        tiles: the training tiles.
        batch_size: tiles a batch; at most N.
        steps: of the whole run.
        seed: of the order.
        position: gives the step to start at when iteration begins.
    """

    def __init__(self, tiles: TrainTiles, batch_size: int, steps: int, seed: int) -> None:
        self._tiles, self._steps, self._seed = tiles, steps, seed
        self.batch_size = batch_size
        self.steps_per_epoch = max(1, len(tiles) // batch_size)
        self.start = 0

    def index(self, step: int) -> Index:
        """Numbers of the tiles of a step; the rest of an epoch that fills no batch is dropped."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._tiles.order(self._seed, epoch)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def __iter__(self) -> Iterator[Batch]:
        return prefetched(self._tiles.images(self.index(s)) for s in range(self.start, self._steps))
