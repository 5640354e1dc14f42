"""The store of vectors of a part under one encoder: a slide's bag is one contiguous slice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from stainssl.stores.atomic import replacing
from stainssl.stores.pixels import open_group
from stainssl.stores.tables import header

CHUNK_ROWS = 4096  # a bag of a few thousand tiles is one or two reads
SHARD_ROWS = 32 * CHUNK_ROWS


def _create_features(group: zarr.Group, n: int, dim: int) -> Any:
    return group.create_array(
        "features",
        shape=(n, dim),
        dtype="float16",
        chunks=(CHUNK_ROWS, dim),
        shards=(SHARD_ROWS, dim),
        compressors=None,  # float16 of a network shrinks by a tenth, and reads ten times slower
        dimension_names=["tile", "feature"],
    )


def _write_features(array: Any, blocks: Iterable[npt.NDArray[np.float16]]) -> npt.NDArray[np.bool_]:
    """Write blocks end to end, a whole shard at a time; returns which rows written are finite."""
    held: list[npt.NDArray[np.float16]] = []
    finite = [np.empty(0, np.bool_)]
    start = rows = 0
    for block in blocks:
        held.append(np.asarray(block, np.float16))
        finite.append(np.all(np.isfinite(held[-1]), axis=1))
        rows += len(block)
        while rows - start >= SHARD_ROWS:
            joined = np.concatenate(held)
            array[start : start + SHARD_ROWS] = joined[:SHARD_ROWS]
            start, held = start + SHARD_ROWS, [joined[SHARD_ROWS:]]
    if rows > start:
        array[start:rows] = np.concatenate(held)
    return np.concatenate(finite)


def _put(group: zarr.Group, name: str, values: npt.NDArray[Any], dimension: str) -> None:
    """A column, in chunks as long as a shard: few files, and one step to read."""
    chunks = (max(1, min(len(values), SHARD_ROWS)),)
    group.create_array(
        name, data=values, chunks=chunks, compressors=None, dimension_names=[dimension]
    )


def write_embeddings(
    path: Path,
    *,
    slide_id: Sequence[str],
    counts: Sequence[int],
    dim: int,
    blocks: Iterable[npt.NDArray[np.float16]],
    tile: npt.NDArray[np.int32],
    x: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    settings: Mapping[str, Any],
) -> None:
    """Write the embeddings of a part, whole or not at all.

    Args:
        slide_id: names of the S slides, in the order of the rows.
        counts: tiles of each slide; they sum to N.
        dim: D, length of a vector.
        blocks: (n, D) float16 blocks, end to end the N rows; a row that could not be made is NaN.
        tile: (N,) index in the slide's tile table.
        x: (N,) level-0 px, left.
        y: (N,) level-0 px, top.
        settings: what made the embeddings; JSON types only.

    Raises:
        ValueError: the blocks do not have N rows.
    """
    n = int(sum(counts))
    with replacing(path) as made:
        group = zarr.create_group(made)
        valid = _write_features(_create_features(group, n, dim), blocks)
        if len(valid) != n:
            raise ValueError(f"{len(valid)} vectors for {n} tiles")
        columns: dict[str, npt.NDArray[Any]] = {"tile": tile, "x": x, "y": y, "valid": valid}
        for name, values in columns.items():
            _put(group, name, values, "tile")
        _put(group, "start", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), "bound")
        group.attrs.update(header("embeddings", settings) | {"slide_id": list(slide_id)})


def _read_plain(path: Path, shard: int, start: int, out: npt.NDArray[np.float16]) -> bool:
    """Fill `out` with a shard's rows from `start` on, where they lie in its file as they are.

    zarr reads a bag chunk by chunk through an event loop, which takes several times as long as the
    bytes. The index at a shard's end (offset and size of each chunk) tells whether all chunks lie
    there uncompressed and end to end; where it does not, nothing is read and False is returned.
    """
    chunk_bytes = CHUNK_ROWS * out.shape[1] * out.itemsize
    chunks = SHARD_ROWS // CHUNK_ROWS
    first, last = start // CHUNK_ROWS, -(-(start + len(out)) // CHUNK_ROWS)
    try:
        with (path / "features" / "c" / str(shard) / "0").open("rb") as file:
            file.seek(-(16 * chunks + 4), os.SEEK_END)  # and a checksum
            index = np.frombuffer(file.read(16 * chunks), "<u8").reshape(chunks, 2)[first:last]
            wanted = index[0, 0] + np.arange(len(index), dtype=np.uint64) * np.uint64(chunk_bytes)
            if (index[:, 0] != wanted).any() or (index[:, 1] != chunk_bytes).any():
                return False
            file.seek(int(index[0, 0]) + (start - first * CHUNK_ROWS) * out.shape[1] * out.itemsize)
            return file.readinto(out) == out.nbytes  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError):  # no such shard, or laid out in another way
        return False


def _plain_column(path: Path) -> npt.NDArray[Any] | None:
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


class Embeddings:
    """An open store of embeddings; an array is read when it is first asked for.

    Attributes:
        slide_id: names of the S slides.
    """

    def __init__(self, group: zarr.Group, path: Path) -> None:
        self._group, self._path = group, path
        self.slide_id: list[str] = list(group.attrs["slide_id"])  # type: ignore[arg-type]

    @cached_property
    def features(self) -> Any:
        """The zarr array (N, D) float16."""
        return self._group["features"]

    @cached_property
    def start(self) -> npt.NDArray[np.int64]:
        """(S+1,) first row of each slide."""
        return self._column("start")

    @cached_property
    def tile(self) -> npt.NDArray[np.int32]:
        """(N,) index in the slide's tile table."""
        return self._column("tile")

    @cached_property
    def x(self) -> npt.NDArray[np.int64]:
        """(N,) level-0 px, left."""
        return self._column("x")

    @cached_property
    def y(self) -> npt.NDArray[np.int64]:
        """(N,) level-0 px, top."""
        return self._column("y")

    @cached_property
    def valid(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the tile has a vector, all of it finite."""
        return self._column("valid")

    def _column(self, name: str) -> Any:
        plain = _plain_column(self._path / name)
        return plain if plain is not None else np.asarray(self._group[name][...])  # type: ignore

    def __len__(self) -> int:
        return int(self.start[-1])

    def rows(self, slide_id: str) -> slice:
        """The rows of a slide; empty where the slide has no tiles."""
        if slide_id not in self.slide_id:
            return slice(0, 0)
        place = self.slide_id.index(slide_id)
        return slice(int(self.start[place]), int(self.start[place + 1]))

    def bag(self, slide_id: str) -> npt.NDArray[np.float16]:
        """The valid vectors of a slide, (n, D) float16, in tile order."""
        rows = self.rows(slide_id)
        features, valid = self.read(rows), self.valid[rows]
        return features if valid.all() else features[valid]

    def read(self, rows: slice) -> npt.NDArray[np.float16]:
        """Vectors of some rows, (n, D) float16; as `features[rows]`, in one read a shard."""
        out = np.empty((rows.stop - rows.start, self.features.shape[1]), np.float16)
        for first in range(rows.start // SHARD_ROWS * SHARD_ROWS, rows.stop, SHARD_ROWS):
            start, stop = max(rows.start, first), min(rows.stop, first + SHARD_ROWS)
            part = out[start - rows.start : stop - rows.start]
            if not _read_plain(self._path, first // SHARD_ROWS, start - first, part):
                part[:] = self.features[start:stop]
        return out


def open_embeddings(path: Path) -> Embeddings:
    """Open the embeddings of a part.

    Raises:
        StainsslError: the store is missing, half written or of another schema.
    """
    return Embeddings(open_group(path, "embeddings"), path)
