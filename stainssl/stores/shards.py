"""What zarr wrote without compression, straight from its files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CHECKSUM_BYTES = 4  # of the index, which ends the file


def read_rows(array: Any, folder: Path, start: int, stop: int) -> npt.NDArray[Any]:
    """`array[start:stop]` of a zarr array, straight from its files where they allow it.

    Args:
        array: with chunks and shards along its first axis alone.
        folder: its own, in a local store.
        start, stop: rows.
    """
    if array.shards is None or stop <= start:
        return np.asarray(array[start:stop])
    out = np.empty((stop - start, *array.shape[1:]), array.dtype)
    row_bytes = out.nbytes // len(out)
    chunk, shard = array.chunks[0], array.shards[0]
    for first in range(start // shard * shard, stop, shard):
        a, b = max(start, first), min(stop, first + shard)
        file = folder.joinpath("c", str(first // shard), *["0"] * (out.ndim - 1))
        part, chunk_bytes = out[a - start : b - start], chunk * row_bytes
        at = (a - first) * row_bytes
        if not read_plain(file, at, part, chunk_bytes=chunk_bytes, chunks=shard // chunk):
            part[:] = array[a:b]
    return out


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


def plain_column(path: Path) -> npt.NDArray[Any] | None:
    """A column whose own metadata says that it lies in its files as it is; None for any other.

    Opening a part takes a sixth of the time that it takes through zarr's event loop.
    """
    try:
        told = json.loads((path / "zarr.json").read_text())
        (codec,) = told["codecs"]
        if codec["name"] != "bytes" or codec.get("configuration", {}).get("endian") == "big":
            return None
        (n,), (chunk,) = told["shape"], told["chunk_grid"]["configuration"]["chunk_shape"]
        files = [path / "c" / str(i) for i in range(-(-n // chunk))]
        return np.concatenate([np.fromfile(file, told["data_type"]) for file in files])[:n]
    except (OSError, ValueError, TypeError, KeyError):  # a chunk that is all zero has no file
        return None
