"""Tiles → vectors: embed images, or the pixels of a part, while the next ones are decoded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from stainssl.encoders.loading import LoadedEncoder
from stainssl.runtime.parallel import TimeSpent, job_threads
from stainssl.runtime.prefetch import prefetched
from stainssl.stores.pixels import Pixels, decode

BATCH = 64  # tiles; larger ones gain nothing on a CPU and little on a GPU
GPU_BATCH = 512
Images = npt.NDArray[np.uint8]
Readable = npt.NDArray[np.bool_]
Block = tuple[torch.Tensor, Readable]  # (m, 3, H, W) uint8, and (n,) of which m are true
HalfVectors = npt.NDArray[np.float16]
log = logging.getLogger(__name__)


def embed_pixels(
    encoders: Sequence[LoadedEncoder],
    pixels: Pixels,
    batch: int | None = None,
    spent: TimeSpent | None = None,
) -> Iterator[list[HalfVectors]]:
    """Vectors of a store of tiles, in its order, read and decoded once in contiguous blocks.

    Args:
        encoders: all on one device.
        batch: tiles a block; halved where the device's memory does not hold it.
        spent: takes note of where the time goes.

    Yields:
        A (n, D) float16 block an encoder, end to end a row per tile, times its `scale`; NaN where a
        JPEG cannot be decoded or the vector does not fit float16.
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
    """The blocks, copied ahead of their use where the device is a GPU."""
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
    """An encoder that is given no more tiles at a time than its device's memory held."""

    def __init__(self, encoder: LoadedEncoder) -> None:
        self.encoder = encoder
        self._most: int | None = None  # tiles; None: it was never too many

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """The vectors of some tiles, (m, D).

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


def _decoded(pixels: Pixels, size: int, pool: ThreadPoolExecutor) -> Iterator[Block]:
    """Blocks of `size` tiles: (m, 3, H, W) of the readable ones, and which of the block are."""
    shape = (pixels.size_px, pixels.size_px, 3)
    ends = [(start, min(start + size, len(pixels))) for start in range(0, len(pixels), size)]
    # Read while the block before is decoded: else all decoders would wait for it.
    for jpegs in prefetched((pixels.jpegs(*block) for block in ends), depth=1):
        images = np.empty((len(jpegs), *shape), np.uint8)
        # A share a thread: a task a tile would cost a quarter of its decoding.
        shares = np.array_split(np.arange(len(jpegs)), max(1, min(job_threads(), len(jpegs))))
        readable = np.concatenate(list(pool.map(partial(_decode, jpegs, images), shares)))
        good = images if readable.all() else images[readable]
        yield torch.from_numpy(good).permute(0, 3, 1, 2), readable


def _decode(jpegs: list[bytes], images: Images, rows: npt.NDArray[np.intp]) -> Readable:
    """Decode some JPEGs into their rows of `images`; which of them could be."""
    readable = np.zeros(len(rows), bool)
    for i, row in enumerate(rows.tolist()):
        with suppress(ValueError):  # no JPEG, or one of another size
            decode(jpegs[row], images[row])
            readable[i] = True
    return readable
