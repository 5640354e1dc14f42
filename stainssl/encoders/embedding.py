"""Embed the tiles of a part; the next tiles are decoded while the network runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from stainssl.encoders.loading import LoadedEncoder
from stainssl.runtime.parallel import TimeSpent, job_threads
from stainssl.runtime.prefetch import prefetched
from stainssl.stores.pixels import decode

BATCH = 64  # tiles per block on a CPU, where larger blocks gain nothing
GPU_BATCH = 512
Images = npt.NDArray[np.uint8]
Readable = npt.NDArray[np.bool_]
Block = tuple[torch.Tensor, Readable]  # (m, 3, H, W) uint8 readable tiles; (n,), m of them true
HalfVectors = npt.NDArray[np.float16]
log = logging.getLogger(__name__)


class EncodedTiles(Protocol):
    """Encoded tiles, such as a pixel store."""

    size_px: int

    def blocks(self, size: int) -> Iterator[list[bytes]]:
        """Yield the JPEGs of all tiles in order, `size` at a time."""


def embed_pixels(
    encoders: Sequence[LoadedEncoder],
    pixels: EncodedTiles,
    batch: int | None = None,
    spent: TimeSpent | None = None,
) -> Iterator[list[HalfVectors]]:
    """Embed tiles with several encoders, in the order of the tiles.

    Tiles are read and decoded once for all encoders, in contiguous blocks.

    Args:
        encoders: all on one device.
        pixels: the tiles, iterated over once.
        batch: tiles per block; None: `GPU_BATCH` on a GPU, else `BATCH`. An encoder for which a
            block does not fit into the device's memory gets smaller batches.
        spent: records the time spent waiting for tiles, in the networks and in writing.

    Yields:
        For each block, one (n, D) float16 array per encoder with a row per tile: embeddings times
        the encoder's `scale`, NaN where the JPEG cannot be decoded or float16 overflows.

    Raises:
        torch.OutOfMemoryError: a single tile does not fit into the device's memory.
    """
    device, spent = encoders[0].device, spent or TimeSpent()
    size = batch or (GPU_BATCH if device.type == "cuda" else BATCH)
    fitting = [_Fitting(encoder) for encoder in encoders]
    with ThreadPoolExecutor(job_threads()) as pool:
        blocks = prefetched(_on_device(_decoded(pixels, size, pool), device))
        for block in spent.each("waiting for tiles", blocks):
            with spent.on("network"):
                vectors = [_vectors(one, *block) for one in fitting]
            with spent.on("writing"):
                yield vectors


def _on_device(blocks: Iterator[Block], device: torch.device) -> Iterator[Block]:
    """Copy blocks to a GPU ahead of their use; on a CPU they stay as they are."""
    for images, readable in blocks:
        if device.type == "cuda":
            yield images.pin_memory().to(device, non_blocking=True), readable
        else:
            yield images, readable


def _vectors(
    fitting: _Fitting, tensor: torch.Tensor, readable: npt.NDArray[np.bool_]
) -> HalfVectors:
    encoder = fitting.encoder
    out = np.full((len(readable), encoder.dim), np.nan, np.float16)
    if len(tensor):
        with np.errstate(over="ignore"):
            vectors = fitting(tensor) * encoder.scale
            out[readable] = vectors.cpu().numpy().astype(np.float16)
    out[~np.isfinite(out).all(axis=1)] = np.nan
    return out


class _Fitting:
    """An encoder whose batch size is halved when the device runs out of memory."""

    def __init__(self, encoder: LoadedEncoder) -> None:
        self.encoder = encoder
        self._most: int | None = None  # tiles per batch; None: memory was always sufficient

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Embeddings (m, D) of m tiles.

        Raises:
            torch.OutOfMemoryError: a single tile does not fit.
        """
        while True:
            size = min(self._most or len(tensor), len(tensor))
            try:
                return torch.cat([self.encoder(part) for part in tensor.split(size)])
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            self._most = size // 2
            log.warning(
                "a batch of %d tiles does not fit in the device's memory: trying half", size
            )
            torch.cuda.empty_cache()


def _decoded(pixels: EncodedTiles, size: int, pool: ThreadPoolExecutor) -> Iterator[Block]:
    """Decode tiles in blocks of `size`."""
    shape = (pixels.size_px, pixels.size_px, 3)
    # The next block is read while one is decoded: otherwise all decoders would wait for it.
    for jpegs in prefetched(pixels.blocks(size), depth=1):
        images = np.empty((len(jpegs), *shape), np.uint8)
        # One share per thread: one task per tile would add a quarter to the decoding time.
        shares = np.array_split(np.arange(len(jpegs)), max(1, min(job_threads(), len(jpegs))))
        readable = np.concatenate(list(pool.map(partial(_decode, jpegs, images), shares)))
        good = images if readable.all() else images[readable]
        yield torch.from_numpy(good).permute(0, 3, 1, 2), readable


def _decode(jpegs: list[bytes], images: Images, rows: npt.NDArray[np.intp]) -> Readable:
    """Decode the JPEGs of `rows` into those rows of `images`; (n,) bool, which could be decoded."""
    readable = np.zeros(len(rows), bool)
    for i, row in enumerate(rows.tolist()):
        with suppress(ValueError):  # not a JPEG, or of another size
            decode(jpegs[row], images[row])
            readable[i] = True
    return readable
