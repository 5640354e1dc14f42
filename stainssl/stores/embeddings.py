"""The store of vectors of a part under one encoder: a slide's bag is one contiguous slice."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
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


def _create(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(CHUNK_ROWS, *shape[1:]),
        shards=(SHARD_ROWS, *shape[1:]),
        compressors=None,  # float16 of a network shrinks by a tenth, and reads ten times slower
        dimension_names=["tile", "feature"][: len(shape)],
    )


def _write_features(array: Any, blocks: Iterable[npt.NDArray[np.float16]]) -> int:
    """Write blocks end to end, a whole shard at a time; returns the rows written."""
    held: list[npt.NDArray[np.float16]] = []
    start = rows = 0
    for block in blocks:
        held.append(np.asarray(block, np.float16))
        rows += len(block)
        while rows - start >= SHARD_ROWS:
            joined = np.concatenate(held)
            array[start : start + SHARD_ROWS] = joined[:SHARD_ROWS]
            start, held = start + SHARD_ROWS, [joined[SHARD_ROWS:]]
    if rows > start:
        array[start:rows] = np.concatenate(held)
    return rows


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
        features = _create(group, "features", (n, dim), "float16")
        if (rows := _write_features(features, blocks)) != n:
            raise ValueError(f"{rows} vectors for {n} tiles")
        valid = np.isfinite(np.asarray(features[:])).all(axis=1)
        for name, values in {"tile": tile, "x": x, "y": y, "valid": valid}.items():
            _create(group, name, (n,), str(values.dtype))[:] = values
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        group.create_array("start", data=start, chunks=(len(start),), dimension_names=["bound"])
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


class Embeddings:
    """An open store of embeddings.

    Attributes:
        features: zarr array (N, D) float16.
        slide_id: names of the S slides.
        start: (S+1,) int64, first row of each slide.
        tile, x, y, valid: (N,) index in the tile table, level-0 px, level-0 px, bool.
    """

    def __init__(self, group: zarr.Group, path: Path) -> None:
        self._path = path
        self.features: Any = group["features"]
        self.slide_id: list[str] = list(group.attrs["slide_id"])  # type: ignore[arg-type]
        self.start: npt.NDArray[np.int64] = np.asarray(group["start"][...])  # type: ignore[index]
        self.tile: npt.NDArray[np.int32] = np.asarray(group["tile"][...])  # type: ignore[index]
        self.x: npt.NDArray[np.int64] = np.asarray(group["x"][...])  # type: ignore[index]
        self.y: npt.NDArray[np.int64] = np.asarray(group["y"][...])  # type: ignore[index]
        self.valid: npt.NDArray[np.bool_] = np.asarray(group["valid"][...])  # type: ignore[index]

    def __len__(self) -> int:
        return len(self.tile)

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
