"""Tiles → vectors: embed images, or the pixels of a part, while the next ones are decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from stainssl.encoders.loading import LoadedEncoder
from stainssl.runtime.prefetch import prefetched
from stainssl.stores.pixels import Pixels, decode

BATCH = 64  # tiles; larger ones gain nothing on a CPU and little on a GPU
GPU_BATCH = 512
Images = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float16]


def embed_pixels(
    encoders: Sequence[LoadedEncoder], pixels: Pixels, batch: int | None = None
) -> Iterator[list[Vectors]]:
    """Vectors of a store of tiles, in its order, read and decoded once in contiguous blocks.

    Args:
        encoders: all on one device.
        batch: tiles a block.

    Yields:
        A (n, D) float16 block an encoder, end to end a row per tile; NaN where a JPEG cannot be
        decoded or the vector does not fit float16.
    """
    size = batch or (GPU_BATCH if encoders[0].device.type == "cuda" else BATCH)
    for images, readable in prefetched(_decoded(pixels, size)):
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2).to(encoders[0].device)
        yield [_vectors(encoder, tensor, readable) for encoder in encoders]


def _vectors(
    encoder: LoadedEncoder, tensor: torch.Tensor, readable: npt.NDArray[np.bool_]
) -> Vectors:
    out = np.full((len(readable), encoder.dim), np.nan, np.float16)
    if len(tensor):
        with np.errstate(over="ignore"):
            out[readable] = encoder(tensor).cpu().numpy().astype(np.float16)
    out[~np.isfinite(out).all(axis=1)] = np.nan
    return out


def _decoded(pixels: Pixels, size: int) -> Iterator[tuple[Images, npt.NDArray[np.bool_]]]:
    """Blocks of `size` tiles: (m, H, W, 3) of the readable ones, and which of the block are."""
    for start in range(0, len(pixels), size):
        images = [_image(jpeg) for jpeg in pixels.jpegs(start, min(start + size, len(pixels)))]
        shape = (pixels.size_px, pixels.size_px, 3)
        good = [image for image in images if image is not None and image.shape == shape]
        readable = np.array([image is not None and image.shape == shape for image in images])
        yield np.stack(good) if good else np.empty((0, *shape), np.uint8), readable


def _image(jpeg: bytes) -> Images | None:
    try:
        return decode(jpeg)
    except ValueError:
        return None
