"""The store of vectors of a part under one encoder: a slide's bag is one contiguous slice."""

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

CHUNK_ROWS = 4096  # a bag of a few thousand tiles is one or two reads
SHARD_ROWS = 32 * CHUNK_ROWS


def _layout(n: int) -> tuple[int, int]:
    """Rows of a chunk and of a shard: as large as they may be, and no larger than `n` rows fill.

    A chunk is written whole, however few of its rows there are.
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
        consolidate(made)


class Embeddings:
    """An open store of embeddings; an array is read when it is first asked for.

    Attributes:
        slide_id: names of the S slides.
    """

    def __init__(self, attributes: Mapping[str, Any], path: Path) -> None:
        self._attributes, self._path = attributes, path
        self._rows = StoredRows(path / "features")
        self.slide_id: list[str] = list(attributes["slide_id"])

    @cached_property
    def features(self) -> Any:
        """The zarr array (N, D) float16: the encoder's vectors times `scale`."""
        return self._array("features")

    @property
    def settings(self) -> dict[str, Any]:
        """What made the embeddings."""
        return dict(self._attributes["settings"])

    @property
    def scale(self) -> float:
        """A power of two by which the encoder's vectors were multiplied to fit float16."""
        return float(self.settings.get("scale", 1.0))

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
        plain = plain_column(self._path / name)
        return plain if plain is not None else np.asarray(self._array(name)[...])

    def _array(self, name: str) -> Any:
        return zarr.open_array(self._path / name, mode="r")

    def __len__(self) -> int:
        return int(self.start[-1])

    @property
    def slide_of_row(self) -> npt.NDArray[np.object_]:
        """(N,) name of each row's slide; of type str also where there is no row."""
        return np.repeat(np.array(self.slide_id, object), np.diff(self.start))

    def rows(self, slide_id: str) -> slice:
        """The rows of a slide; empty where the slide has no tiles."""
        if slide_id not in self.slide_id:
            return slice(0, 0)
        place = self.slide_id.index(slide_id)
        return slice(int(self.start[place]), int(self.start[place + 1]))

    def read(self, rows: slice) -> npt.NDArray[np.float16]:
        """Vectors of some rows, (n, D) float16; as `features[rows]`, in one read a shard."""
        return self._rows.read(rows.start, rows.stop)


def open_embeddings(path: Path) -> Embeddings:
    """Open the embeddings of a part.

    Raises:
        StainsslError: the store is missing, half written or of another schema.
    """
    return Embeddings(attributes(path, "embeddings"), path)
