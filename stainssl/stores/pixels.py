"""Store of the JPEG-encoded tiles of a part, with byte offsets and stain profiles."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import zarr

from stainssl.stores.atomic import replacing
from stainssl.stores.shards import StoredRows, attributes
from stainssl.stores.tables import header

CHUNK_BYTES = 1 << 20  # a few dozen JPEGs
SHARD_BYTES = 16 << 20  # writing a shard takes four times as much memory
SPOOL_BYTES = 16 << 20  # JPEGs of a slide kept in memory; more go to a temporary file
JPEG_QUALITY = 90
Fields = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SlidePixels:
    """Encoded tiles and stain profiles of one slide, the input of `write_pixels`.

    Attributes:
        slide_id: name of the slide.
        tile: (n,) int32, tile number within the slide.
        jpeg: n encoded tiles, iterated over once; empty bytes for a tile that cannot be read.
        profiles: stain method → field → (n, ...), profiles of the tiles.
        pooled: stain method → field → (...), profile of the slide.
    """

    slide_id: str
    tile: npt.NDArray[np.int32]
    jpeg: Iterable[bytes]
    profiles: dict[str, Fields] = field(default_factory=dict)
    pooled: dict[str, Fields] = field(default_factory=dict)


class JpegSpool:
    """Sequence of JPEGs in bounded memory; many of them are moved to a temporary file.

    It keeps the tiles of a slide until all of them have been read.
    """

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 -- lives as long as this
        self._lengths: list[int] = []

    def append(self, jpeg: bytes) -> None:
        """Append one JPEG.

        Raises:
            OSError: the folder for temporary files (`TMPDIR`) is full.
        """
        self._file.write(jpeg)
        self._lengths.append(len(jpeg))

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        for length in self._lengths:
            yield self._file.read(length)


def encode(image: npt.NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """Encode an RGB tile (H, W, 3) uint8 as JPEG.

    Chroma is not subsampled, because stain information is in the chroma.

    Raises:
        ValueError: the image cannot be encoded.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"an image of shape {image.shape}, {image.dtype} cannot be JPEG-encoded")
    return data.tobytes()


def decode(jpeg: bytes, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
    """Decode a JPEG to an RGB tile (H, W, 3) uint8.

    Args:
        jpeg: encoded image.
        out: (H, W, 3) uint8, contiguous array to write to.

    Raises:
        ValueError: the bytes cannot be decoded, or the image does not have the shape of `out`.
    """
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    if image is None:
        raise ValueError(f"{len(jpeg)} bytes that are not a JPEG")
    if out is not None and image.shape != out.shape:
        raise ValueError(f"a JPEG of {image.shape} instead of {out.shape}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out)  # type: ignore[return-value]


class _JpegWriter:
    """Appends bytes to a sharded array, one full shard at a time: no shard is written twice."""

    def __init__(self, group: zarr.Group) -> None:
        self._array = group.create_array(
            "jpeg", shape=(0,), dtype="uint8", chunks=(CHUNK_BYTES,), shards=(SHARD_BYTES,),
            compressors=None, fill_value=0,
        )  # fmt: skip
        self._buffer = bytearray()

    def append(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= SHARD_BYTES:
            self._write(SHARD_BYTES)

    def close(self) -> None:
        if self._buffer:
            self._write(len(self._buffer))

    def _write(self, size: int) -> None:
        full, self._buffer = self._buffer, self._buffer[size:]
        start = self._array.shape[0]
        self._array.resize((start + size,))
        self._array[start:] = np.frombuffer(full, np.uint8, size)  # a view: shards are large


def _put(group: zarr.Group, name: str, values: npt.NDArray[Any]) -> None:
    """Write a small array in one chunk."""
    chunks = tuple(max(1, size) for size in values.shape)
    array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks)
    array[...] = values


def _put_profiles(
    group: zarr.Group, name: str, fields: list[dict[str, Fields]], stack: Any
) -> None:
    for method in fields[0] if fields else ():
        for key in fields[0][method]:
            values = stack([np.asarray(one[method][key]) for one in fields])
            _put(group, f"{name}/{method}/{key}", values)


def write_pixels(
    path: Path,
    slides: Iterable[SlidePixels],
    *,
    size_px: int,
    mpp: float,
    settings: Mapping[str, Any],
) -> None:
    """Write the pixels of a part atomically, slide by slide.

    Args:
        path: zarr group to write.
        slides: slides, consumed one at a time; slides without tiles are left out.
        size_px: side of a tile in px.
        mpp: pixel size of the tiles in µm/px.
        settings: settings that determine the pixels; JSON types only.
    """
    ids: list[str] = []
    slide: list[npt.NDArray[np.int32]] = []
    tile: list[npt.NDArray[np.int32]] = []
    lengths: list[int] = []
    profiles: list[dict[str, Fields]] = []
    pooled: list[dict[str, Fields]] = []
    with replacing(path) as made:
        group = zarr.create_group(made)
        writer = _JpegWriter(group)
        for one in slides:
            if not len(one.tile):
                continue
            slide.append(np.full(len(one.tile), len(ids), np.int32))
            ids.append(one.slide_id)
            tile.append(np.asarray(one.tile, np.int32))
            profiles.append(one.profiles)
            pooled.append(one.pooled)
            for _, data in zip(one.tile, one.jpeg, strict=True):
                lengths.append(len(data))
                writer.append(data)
        writer.close()
        _put(group, "offset", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        _put(group, "slide", np.concatenate([*slide, np.empty(0, np.int32)]))
        _put(group, "tile", np.concatenate([*tile, np.empty(0, np.int32)]))
        _put_profiles(group, "profile", profiles, np.concatenate)
        _put_profiles(group, "pooled", pooled, np.stack)
        group.attrs.update(header("pixels", settings) | {
            "slide_id": ids, "size_px": size_px, "mpp": mpp,
        })  # fmt: skip
        consolidate(made)


class Pixels:
    """Encoded tiles of a part, opened for reading; JPEGs are read on demand.

    Attributes:
        slide_id: names of the S slides.
        slide: (N,) int32, index of each tile's slide in `slide_id`.
        tile: (N,) int32, tile number within the slide.
        size_px: side of a tile in px.
        mpp: pixel size of the tiles in µm/px.
    """

    def __init__(self, group: zarr.Group, folder: Path) -> None:
        self._group, self._jpeg = group, StoredRows(folder / "jpeg")
        self._offset: npt.NDArray[np.int64] = self._read("offset")
        self.slide: npt.NDArray[np.int32] = self._read("slide")
        self.tile: npt.NDArray[np.int32] = self._read("tile")
        attrs: Any = group.attrs.asdict()
        self.slide_id: list[str] = list(attrs["slide_id"])
        self.size_px = int(attrs["size_px"])
        self.mpp = float(attrs["mpp"])

    def __len__(self) -> int:
        return len(self.tile)

    def _read(self, name: str) -> Any:
        return np.asarray(self._group[name][...])  # type: ignore[index]

    def jpegs(self, start: int, stop: int) -> list[bytes]:
        """Read the JPEGs of tiles `start` to `stop` (exclusive), which are contiguous bytes."""
        if stop <= start:
            return []
        offset = self._offset[start : stop + 1]
        data = self._jpeg.read(int(offset[0]), int(offset[-1])).data
        inner = (offset - offset[0]).tolist()
        return [data[a:b].tobytes() for a, b in pairwise(inner)]

    def blocks(self, size: int) -> Iterator[list[bytes]]:
        """Yield the JPEGs of all tiles in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.jpegs(start, min(start + size, len(self)))

    def images(self, index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """Read and decode tiles.

        Args:
            index: (n,) indices into the N tiles, in any order.

        Returns:
            (n, size_px, size_px, 3) uint8 RGB, in the order of `index`.

        Raises:
            ValueError: a JPEG cannot be decoded.
        """
        index = np.asarray(index)
        out = np.empty((len(index), self.size_px, self.size_px, 3), np.uint8)
        order = np.argsort(index, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(index[order]) > 1) + 1):
            if not len(run):
                continue
            first = int(index[run[0]])
            data = self.jpegs(first, int(index[run[-1]]) + 1)
            for place in run:
                decode(data[int(index[place]) - first], out[place])
        return out

    def profile_methods(self) -> list[str]:
        """Names of the stain methods whose profiles are stored."""
        return sorted(self._group["profile"].keys()) if "profile" in self._group else []  # type: ignore[union-attr]

    def profile(self, method: str) -> Fields:
        """Stain profiles of the tiles: field → (N, ...); empty if the method is not stored."""
        return self._fields("profile", method)

    def pooled(self, method: str) -> Fields:
        """Stain profiles of the slides: field → (S, ...), in the order of `slide_id`.

        Empty if the method is not stored.
        """
        return self._fields("pooled", method)

    def _fields(self, name: str, method: str) -> Fields:
        place = f"{name}/{method}"
        if place not in self._group:
            return {}
        return {key: np.asarray(array[...]) for key, array in self._group[place].arrays()}  # type: ignore[union-attr]


def open_pixels(path: Path) -> Pixels:
    """Open the pixels of a part.

    Raises:
        StainsslError: the store is missing, incomplete, of another kind or of another schema.
    """
    attributes(path, "pixels")
    return Pixels(zarr.open_group(path, mode="r"), path)


def consolidate(path: Path) -> None:
    """Write zarr's consolidated metadata to the root of a new store.

    Other readers, such as xarray, then need not list the folder, which may contain files of a
    workflow engine.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr warns that it is an extension of the format
        zarr.consolidate_metadata(path)
