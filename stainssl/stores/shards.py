"""Bytes of a shard that zarr wrote without compression, straight from its file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CHECKSUM_BYTES = 4  # of the index, which ends the file


def read_plain(
    file: Path, start: int, out: npt.NDArray[Any], *, chunk_bytes: int, chunks: int
) -> bool:
    """Fill `out` with a shard's bytes from `start` on, where they lie in its file as they are.

    zarr reads chunk by chunk and whole through an event loop, which takes several times as long as
    the bytes. The index (offset and size of each chunk) tells whether the chunks lie there
    uncompressed and end to end; where it does not, False is returned, and zarr has to read them.

    Args:
        file: the shard's.
        start: byte of the shard's own content.
        out: contiguous.
        chunk_bytes, chunks: size of a chunk, and how many a shard has.
    """
    first, last = start // chunk_bytes, -(-(start + out.nbytes) // chunk_bytes)
    try:
        with file.open("rb", buffering=0) as data:
            data.seek(-(16 * chunks + CHECKSUM_BYTES), os.SEEK_END)
            index = np.frombuffer(data.read(16 * chunks), "<u8").reshape(chunks, 2)[first:last]
            wanted = index[0, 0] + np.arange(len(index), dtype=np.uint64) * np.uint64(chunk_bytes)
            if (index[:, 0] != wanted).any() or (index[:, 1] != chunk_bytes).any():
                return False
            data.seek(int(index[0, 0]) + start - first * chunk_bytes)
            return data.readinto(out.reshape(-1).view(np.uint8).data) == out.nbytes
    except (OSError, ValueError, IndexError):  # no such shard, or laid out in another way
        return False
