"""Fast reading of uncompressed zarr arrays, directly from their files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from stainssl.errors import StainsslError
from stainssl.stores.tables import check_header

CHECKSUM_BYTES = 4  # CRC32C of the shard index, at the end of the file


def attributes(path: Path, kind: str) -> dict[str, Any]:
    """Read the attributes of a store, a zarr group with a `tables.header`.

    Raises:
        StainsslError: the store is missing, incomplete, of another kind or of another schema.
    """
    try:
        root = json.loads((path / "zarr.json").read_text())
        found: dict[str, Any] = root["attributes"]
    except FileNotFoundError:
        raise StainsslError(f"{path} is missing: the stage that makes it has not run.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise StainsslError(f"{path} is incomplete ({error}). Delete it and run again.") from error
    check_header(found, kind, path)
    return found


class StoredRows:
    """Rows of a zarr array, read directly from its files if it is stored uncompressed.

    Args:
        folder: folder of the array in a local store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _array(self) -> Any:
        """The array opened by zarr, for any other layout.

        Opened only if needed, since that takes longer than reading the rows of a slide.
        """
        return zarr.open_array(self._folder, mode="r")

    @cached_property
    def _layout(self) -> RowLayout | None:
        return RowLayout.from_metadata(self._folder)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read rows `start` to `stop` (exclusive): (stop − start, ...)."""
        layout = self._layout
        if layout is None or stop <= start:
            return np.asarray(self._array[start:stop])
        out = np.empty((stop - start, *layout.shape[1:]), layout.dtype)
        chunk_bytes, shard = layout.chunk_rows * (out.nbytes // len(out)), layout.shard_rows
        for first in range(start // shard * shard, stop, shard):
            a, b = max(start, first), min(stop, first + shard)
            part, at = out[a - start : b - start], (a - first) * (out.nbytes // len(out))
            file = self._folder.joinpath("c", str(first // shard), *["0"] * (out.ndim - 1))
            if not read_plain(
                file, at, part, chunk_bytes=chunk_bytes, chunks=shard // layout.chunk_rows
            ):
                part[:] = self._array[a:b]
        return out


@dataclass(frozen=True)
class RowLayout:
    """Layout of an uncompressed array whose shards and chunks divide its first axis only."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    shard_rows: int

    @classmethod
    def from_metadata(cls, folder: Path) -> RowLayout | None:
        """Read the layout from an array's metadata; None if it is another kind of layout."""
        try:
            metadata = json.loads((folder / "zarr.json").read_text())
            (codec,) = metadata["codecs"]
            inner = codec["configuration"]
            shard, chunk = (
                metadata["chunk_grid"]["configuration"]["chunk_shape"],
                inner["chunk_shape"],
            )
            if shard[1:] != metadata["shape"][1:] or chunk[1:] != shard[1:] or not _is_plain(inner):
                return None
            return cls(
                tuple(metadata["shape"]), np.dtype(metadata["data_type"]), chunk[0], shard[0]
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _is_plain(metadata: Mapping[str, Any]) -> bool:
    """Whether the only codec of an array or a shard is little-endian (or one-byte) `bytes`."""
    (codec,) = metadata["codecs"]
    return codec["name"] == "bytes" and codec.get("configuration", {}).get("endian") != "big"


def read_plain(
    file: Path, start: int, out: npt.NDArray[Any], *, chunk_bytes: int, chunks: int
) -> bool:
    """Fill `out` with the bytes of a shard, if its chunks are uncompressed and contiguous.

    zarr reads whole chunks, one by one in an event loop, which takes several times as long. The
    shard index (offset and size of each chunk) says whether the chunks are stored this way.

    Args:
        file: file of the shard.
        start: first byte within the decoded shard.
        out: contiguous array.
        chunk_bytes, chunks: bytes per chunk, and chunks per shard.

    Returns:
        False if the shard is missing or stored differently: then zarr has to read it.
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
    except (OSError, ValueError, IndexError):  # no such shard, or another layout
        return False


def plain_column(path: Path) -> npt.NDArray[Any] | None:
    """Read an uncompressed one-dimensional array from its files; None if it is stored differently.

    Opening a part takes a sixth of the time that zarr takes.
    """
    try:
        metadata = json.loads((path / "zarr.json").read_text())
        if not _is_plain(metadata):
            return None
        (n,), (chunk,) = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
        files = [path / "c" / str(i) for i in range(-(-n // chunk))]
        return np.concatenate([np.fromfile(file, metadata["data_type"]) for file in files])[:n]
    except (OSError, ValueError, TypeError, KeyError):  # a chunk of zeros has no file
        return None
