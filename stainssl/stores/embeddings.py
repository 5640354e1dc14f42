"""Store of the embeddings of a part by one encoder; the rows of a slide are contiguous."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from stainssl.stores.atomic import replacing
from stainssl.stores.pixels import consolidate
from stainssl.stores.shards import StoredRows, attributes, plain_column
from stainssl.stores.tables import header

CHUNK_ROWS = 4096  # a slide of a few thousand tiles takes one or two reads
SHARD_ROWS = 32 * CHUNK_ROWS


def _layout(n: int) -> tuple[int, int]:
    """Rows per chunk and per shard: up to the constants above, but no more than `n` rows need.

    zarr always writes full chunks, even if only a few of their rows are used.
    """
    if n > SHARD_ROWS:
        return CHUNK_ROWS, SHARD_ROWS
    count = max(1, -(-n // CHUNK_ROWS))
    rows = max(1, -(-n // count))
    return rows, count * rows


def _create_features(group: zarr.Group, n: int, dim: int) -> Any:
    chunk, shard = _layout(n)
    return group.create_array(
        "features",
        shape=(n, dim),
        dtype="float16",
        chunks=(chunk, max(dim, 1)),
        shards=(shard, max(dim, 1)),
        compressors=None,  # compression would save a tenth, and make reading ten times slower
        dimension_names=["tile", "feature"],
    )


def _write_features(array: Any, blocks: Iterable[npt.NDArray[np.float16]]) -> npt.NDArray[np.bool_]:
    """Write blocks one after the other, a full shard at a time; returns which rows are finite."""
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
    """Write a column in chunks of the length of a shard, so that it has few files."""
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
    """Write the embeddings of a part atomically.

    Args:
        path: zarr group to write.
        slide_id: names of the S slides, in the order of the rows.
        counts: number of tiles of each slide, N in total.
        dim: dimension D of the embeddings.
        blocks: (n, D) float16 blocks that together are the N rows; a tile without an embedding is
            a row of NaN.
        tile: (N,) tile number within the slide.
        x: (N,) left edge in level-0 px.
        y: (N,) top edge in level-0 px.
        settings: settings that determine the embeddings; JSON types only.

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
        consolidate(made)


class Embeddings:
    """Embeddings of a part, opened for reading; each array is read at its first use.

    Attributes:
        slide_id: names of the S slides.
    """

    def __init__(self, attributes: Mapping[str, Any], path: Path) -> None:
        self._attributes, self._path = attributes, path
        self._rows = StoredRows(path / "features")
        self.slide_id: list[str] = list(attributes["slide_id"])

    @cached_property
    def features(self) -> Any:
        """zarr array (N, D) float16 of the embeddings, multiplied by `scale`."""
        return self._array("features")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that determine the embeddings."""
        return dict(self._attributes["settings"])

    @property
    def scale(self) -> float:
        """Power of two by which the embeddings were multiplied to fit the range of float16."""
        return float(self.settings.get("scale", 1.0))

    @cached_property
    def start(self) -> npt.NDArray[np.int64]:
        """(S+1,) first row of each slide."""
        return self._column("start")

    @cached_property
    def tile(self) -> npt.NDArray[np.int32]:
        """(N,) tile number within the slide."""
        return self._column("tile")

    @cached_property
    def x(self) -> npt.NDArray[np.int64]:
        """(N,) left edge of each tile in level-0 px."""
        return self._column("x")

    @cached_property
    def y(self) -> npt.NDArray[np.int64]:
        """(N,) top edge of each tile in level-0 px."""
        return self._column("y")

    @cached_property
    def valid(self) -> npt.NDArray[np.bool_]:
        """(N,) whether all values of the tile's embedding are finite."""
        return self._column("valid")

    def _column(self, name: str) -> Any:
        plain = plain_column(self._path / name)
        return plain if plain is not None else np.asarray(self._array(name)[...])

    def _array(self, name: str) -> Any:
        return zarr.open_array(self._path / name, mode="r")

    def __len__(self) -> int:
        return int(self.start[-1])

    @property
    def slide_of_row(self) -> npt.NDArray[np.object_]:
        """(N,) slide name of each row, of dtype object."""
        return np.repeat(np.array(self.slide_id, object), np.diff(self.start))

    def rows(self, slide_id: str) -> slice:
        """Slice of the rows of a slide; empty if the slide has no tiles or is not in the store."""
        if slide_id not in self.slide_id:
            return slice(0, 0)
        place = self.slide_id.index(slide_id)
        return slice(int(self.start[place]), int(self.start[place + 1]))

    def read(self, rows: slice) -> npt.NDArray[np.float16]:
        """Read rows, (n, D) float16: as `features[rows]`, but with one read per shard."""
        return self._rows.read(rows.start, rows.stop)


def open_embeddings(path: Path) -> Embeddings:
    """Open the embeddings of a part.

    Raises:
        StainsslError: the store is missing, incomplete, of another kind or of another schema.
    """
    return Embeddings(attributes(path, "embeddings"), path)
