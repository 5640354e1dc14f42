"""Training tiles: read in blocks, shuffled within a buffer, decoded ahead of the network.

Decoding runs in threads: the JPEG library releases the interpreter's lock, and no tile is copied
between processes. Tiles and streams can be pickled: threads and buffers are created again.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stainssl.errors import StainsslError
from stainssl.pretrain.distributed import rank, world_size
from stainssl.runtime.prefetch import prefetched
from stainssl.stores.pixels import Pixels, decode

log = logging.getLogger(__name__)

BLOCK = 64  # tiles of one range read: a few hundred kB of JPEG
BUFFER = 128  # blocks that are shuffled together
CACHE_BYTES = 1 << 30  # of memory for decoded tiles
Index = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """One process's share of the tiles of one step.

    Attributes:
        images: (B, 3, H, W) uint8.
        tile: (B,) tile numbers.
        everyone: (W·B,) tile numbers of the step, of all W processes.
        start: position of this process's first tile in `everyone`.
    """

    images: Tensor
    tile: Index
    everyone: Index
    start: int = 0

    @property
    def rows(self) -> slice:
        """This process's rows among those of the whole step, as of random numbers."""
        return slice(self.start, self.start + len(self.tile))


class TrainTiles:
    """The tiles of several pixel stores, numbered consecutively from 0 to N − 1.

    Decoded tiles are kept in memory if all of them fit into `cache_bytes`.

    Args:
        stores: pixel stores with the same tile size.
        cache_bytes: memory for decoded tiles.
        workers: number of decoding threads.
        gpu: decode on the GPU if torchvision can; decoded tiles are then not kept.

    Attributes:
        size_px: side of a tile in px.

    Raises:
        StainsslError: fewer than two tiles, or different tile sizes.
    """

    def __init__(
        self,
        stores: Sequence[Pixels],
        *,
        cache_bytes: int = CACHE_BYTES,
        workers: int = 1,
        gpu: bool = False,
    ) -> None:
        sizes = {store.size_px for store in stores if len(store)}
        count = sum(len(store) for store in stores)
        if count < 2:
            raise StainsslError(
                f"Training needs at least two tiles, found {count} in {len(stores)} "
                "part(s). See the `qc` tables for the reasons, and check tilings.*.min_tissue."
            )
        if len(sizes) > 1:
            raise StainsslError(
                f"Training tiles have different sizes, {sorted(sizes)} px: use one tiling."
            )
        self.size_px = max(sizes)
        self._stores = list(stores)
        self._first = np.cumsum([0] + [len(store) for store in stores])
        self._block_start = _block_starts(self._first)
        self._workers, self._gpu = workers, gpu
        fits = count * self.size_px**2 * 3 <= cache_bytes and not gpu
        self._cache = np.empty((count if fits else 0, self.size_px, self.size_px, 3), np.uint8)
        self._cached = np.zeros(count if fits else 0, bool)
        self._bad = np.zeros(count, bool)
        self._open()

    def _open(self) -> None:
        self._blocks: OrderedDict[int, list[bytes]] = OrderedDict()
        self._free: list[npt.NDArray[np.uint8]] = []
        self._pool = ThreadPoolExecutor(self._workers) if self._workers > 1 else None

    def __getstate__(self) -> dict[str, Any]:
        held = ("_blocks", "_free", "_pool")
        return {k: v for k, v in self.__dict__.items() if k not in held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return int(self._first[-1])

    def order(self, seed: int, epoch: int) -> Order:
        """Random order of the N tiles in an epoch."""
        return _order(self._block_start.tobytes(), len(self), seed, epoch)

    def batch(self, everyone: Index, rank: int = 0, world_size: int = 1) -> Batch:
        """Decode one process's share of the tiles of a step, in their order.

        A tile that cannot be decoded is replaced by another one of the share, so that all
        processes have the same number.

        Args:
            everyone: tile numbers of the step, a multiple of `world_size`.
            rank: of the process.
            world_size: number of processes.

        Raises:
            StainsslError: fewer than two tiles of the share can be decoded.
        """
        count = len(everyone) // world_size
        index = everyone[rank * count : (rank + 1) * count].copy()
        images = self._on_gpu(index) if self._gpu else None
        if images is None:
            images = self._on_cpu(index)
        return Batch(images, index, everyone, rank * count)

    def readable(self, index: Index) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """Decode tiles, leaving out those that cannot be decoded.

        Args:
            index: (n,) tile numbers.

        Returns:
            (m, 3, H, W) uint8 decoded tiles, and a (n,) bool mask of them with m true values.
        """
        images = self._decoded(index)
        good = ~self._bad[index]
        return _planes(images if good.all() else images[good]), good

    def _on_cpu(self, index: Index) -> Tensor:
        """(B, 3, H, W) uint8; bad tiles are replaced, and so are their numbers in `index`."""
        images = self._decoded(index)
        bad, stands_in = self._replaced(index)
        images[bad] = images[stands_in]
        return _planes(images)

    def _decoded(self, index: Index) -> npt.NDArray[np.uint8]:
        """(B, H, W, 3) uint8; rows of bad tiles are undefined."""
        kept = bool(len(self._cache))
        batch = self._buffer(len(index))
        images = self._cache if kept else batch
        places = index if kept else np.arange(len(index))
        absent = ~self._bad[index] & (~self._cached[index] if kept else True)
        self._decode(index[absent], images, places[absent])
        if kept:
            np.take(self._cache, index, axis=0, out=batch, mode="clip")
        return batch

    def _buffer(self, count: int) -> npt.NDArray[np.uint8]:
        """(count, H, W, 3) uint8 array, in the memory of an earlier batch if possible.

        The first access to new memory takes half as long as decoding. The array is a view: its
        memory is reused once neither the view nor a tensor of it exists any more.
        """
        shape = (count, self.size_px, self.size_px, 3)
        fits = (i for i, buffer in enumerate(self._free) if buffer.shape == shape)
        place = next(fits, None)
        buffer = np.empty(shape, np.uint8) if place is None else self._free.pop(place)
        lent = buffer.view()
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return lent

    def _replaced(self, index: Index) -> tuple[Index, Index]:
        """Replace bad tiles in `index`; returns their positions, and those of the replacements."""
        good, bad = np.flatnonzero(~self._bad[index]), np.flatnonzero(self._bad[index])
        if len(good) < 2:
            raise StainsslError(
                f"{len(bad)} of the {len(index)} tiles of a batch cannot be decoded: delete the "
                "pixels of the training parts and make them again."
            )
        stands_in = np.resize(good, len(bad))
        index[bad] = index[stands_in]
        return bad, stands_in

    def _slide_of(self, tile: int) -> str:
        store = int(np.searchsorted(self._first, tile, side="right")) - 1
        found = self._stores[store]
        return found.slide_id[int(found.slide[tile - self._first[store]])]

    def _decode(self, tiles: Index, images: npt.NDArray[np.uint8], places: Index) -> None:
        """Decode tiles into the rows `places` of `images`; mark and log those that fail."""
        jpegs, good = self._jpegs(tiles), np.zeros(len(tiles), bool)

        def some(rows: range) -> None:
            for row in rows:
                with suppress(ValueError):
                    decode(jpegs[row], images[places[row]])
                    good[row] = True

        # One share per thread: one task per tile would add a quarter to the decoding time.
        shares = [range(i, len(tiles), self._workers) for i in range(self._workers)]
        list(self._pool.map(some, shares) if self._pool else map(some, shares))
        if len(self._cache):
            self._cached[tiles[good]] = True
        for tile in tiles[~good].tolist():
            self._bad[tile] = True
            log.warning("a tile of slide %s cannot be decoded: left out", self._slide_of(tile))

    def _on_gpu(self, index: Index) -> Tensor | None:
        """(B, 3, H, W) uint8 on the GPU; None if a tile is bad or torchvision has no nvJPEG."""
        from torchvision.io import ImageReadMode, decode_jpeg

        jpegs = self._jpegs(index)
        if not all(jpegs):  # a tile that could not be read
            return None
        encoded = [torch.frombuffer(bytearray(j), dtype=torch.uint8) for j in jpegs]
        try:
            images = decode_jpeg(encoded, mode=ImageReadMode.RGB, device="cuda")
        except RuntimeError as error:
            log.warning("decoding on the GPU failed (%s): using the CPU", error)
            return None
        right = (3, self.size_px, self.size_px)
        return torch.stack(images) if all(image.shape == right for image in images) else None

    def _jpegs(self, index: Index) -> list[bytes]:
        blocks = np.searchsorted(self._block_start, index, side="right") - 1
        inner = index - self._block_start[blocks]
        return [self._block(b)[i] for b, i in zip(blocks.tolist(), inner.tolist(), strict=True)]

    def _block(self, block: int) -> list[bytes]:
        """The JPEGs of a block, read at once and kept while they may be needed again."""
        if (found := self._blocks.get(block)) is not None:
            return found
        start = int(self._block_start[block])
        store = int(np.searchsorted(self._first, start, side="right")) - 1
        stop = min(start + BLOCK, int(self._first[store + 1]))
        first = int(self._first[store])
        read = self._stores[store].jpegs(start - first, stop - first)
        self._blocks[block] = read
        if len(self._blocks) > 2 * BUFFER:  # a batch may have tiles of two buffers
            self._blocks.popitem(last=False)
        return read


def _planes(images: npt.NDArray[np.uint8]) -> Tensor:
    # Channels stay last in memory: nothing needs them first, and a copy takes a third of decoding.
    planes = torch.from_numpy(images).permute(0, 3, 1, 2)
    return planes.pin_memory() if torch.cuda.is_available() else planes


def _block_starts(first: Index) -> Index:
    """First tile of each block; a block lies within one store."""
    ranges = [np.arange(a, b, BLOCK) for a, b in pairwise(first)]
    return np.concatenate(ranges).astype(np.int64)


class Order:
    """A random order of N tiles, made one buffer at a time, so that 10 million need little memory.

    Blocks are shuffled, then the tiles within each `BUFFER` blocks.
    """

    def __init__(self, block_starts: Index, count: int, seed: int, epoch: int) -> None:
        self._seed, self._epoch = seed, epoch
        blocks = np.random.default_rng([seed, epoch]).permutation(len(block_starts))
        self._starts = block_starts[blocks]
        self._sizes = np.diff(np.append(block_starts, count))[blocks]
        heads = np.arange(0, len(blocks), BUFFER)
        self._ends = np.cumsum(np.add.reduceat(self._sizes, heads))
        self._held: tuple[int, Index] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, start: int, stop: int) -> Index:
        """Tile numbers at the positions `start` to `stop` of the order."""
        pieces = []
        while start < stop:
            buffer = int(np.searchsorted(self._ends, start, side="right"))
            end = int(self._ends[buffer])
            tiles = self._buffer(buffer)
            offset = end - len(tiles)
            pieces.append(tiles[start - offset : min(stop, end) - offset])
            start = end
        return np.concatenate(pieces)

    def _buffer(self, number: int) -> Index:
        if self._held[0] != number:
            blocks = slice(number * BUFFER, (number + 1) * BUFFER)
            starts, sizes = self._starts[blocks], self._sizes[blocks]
            inner = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            tiles = np.repeat(starts, sizes) + inner
            rng = np.random.default_rng([self._seed, self._epoch, number])
            self._held = (number, rng.permutation(tiles))
        return self._held[1]


@lru_cache(maxsize=2)
def _order(block_starts: bytes, count: int, seed: int, epoch: int) -> Order:
    return Order(np.frombuffer(block_starts, np.int64), count, seed, epoch)


class Stream:
    """The batches of a whole run, from any step on.

    The batch of a step depends only on the seed and the number of the step. With several processes,
    each gets its share of every step.

    Args:
        tiles: the training tiles.
        batch_size: tiles per step, of all processes together; at most N.
        steps: of the whole run.
        seed: of the order.

    Attributes:
        start: first step of the iteration.
    """

    def __init__(self, tiles: TrainTiles, batch_size: int, steps: int, seed: int) -> None:
        self._tiles, self._steps, self._seed = tiles, steps, seed
        self.batch_size = batch_size
        self.steps_per_epoch = max(1, len(tiles) // batch_size)
        self.start = 0

    def index(self, step: int) -> Index:
        """Tile numbers of a step; the last tiles of an epoch that fill no batch are dropped."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._tiles.order(self._seed, epoch)
        return order.take(place * self.batch_size, (place + 1) * self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        shares = (
            self._tiles.batch(self.index(step), rank(), world_size())
            for step in range(self.start, self._steps)
        )
        return prefetched(shares)
