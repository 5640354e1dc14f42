"""The store of encoded tiles of a part: all JPEGs end to end, their offsets and stain profiles."""

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

CHUNK_BYTES = 1 << 20  # what one read of a few dozen JPEGs touches
SHARD_BYTES = 16 << 20  # writing one holds four times as much
SPOOL_BYTES = 16 << 20  # of a slide's JPEGs that wait in memory before they go to a file
JPEG_QUALITY = 90
Fields = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SlidePixels:
    """The encoded tiles of one slide, as `write_pixels` takes them.

    Attributes:
        tile: (n,) int32, index in the slide's tile table.
        jpeg: n encoded tiles, read once; no bytes where one could not be read.
        profiles: stain method → field → (n, ...), a row per tile.
        pooled: stain method → field → (...), the slide's own.
    """

    slide_id: str
    tile: npt.NDArray[np.int32]
    jpeg: Iterable[bytes]
    profiles: dict[str, Fields] = field(default_factory=dict)
    pooled: dict[str, Fields] = field(default_factory=dict)


class JpegSpool:
    """JPEGs in the order of `append`, in a temporary file where they are many.

    So a slide of any size waits in bounded memory until it is known to be whole.
    """

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 -- lives as long as this
        self._lengths: list[int] = []

    def append(self, jpeg: bytes) -> None:
        """Add one.

        Raises:
            OSError: no room in the folder of temporary files (`TMPDIR`).
        """
        self._file.write(jpeg)
        self._lengths.append(len(jpeg))

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        for length in self._lengths:
            yield self._file.read(length)


def encode(image: npt.NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """JPEG of one RGB tile (H, W, 3) uint8, without chroma subsampling (stain lives in chroma)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"an image of shape {image.shape}, {image.dtype} cannot be JPEG-encoded")
    return data.tobytes()


def decode(jpeg: bytes, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
    """RGB tile (H, W, 3) uint8 of one JPEG.

    Args:
        out: (H, W, 3) uint8, contiguous, to write it to.

    Raises:
        ValueError: the bytes are not a JPEG, or not one of the size of `out`.
    """
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    if image is None:
        raise ValueError(f"{len(jpeg)} bytes that are not a JPEG")
    if out is not None and image.shape != out.shape:
        raise ValueError(f"a JPEG of {image.shape} instead of {out.shape}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out)  # type: ignore[return-value]


class _JpegWriter:
    """Appends bytes to one sharded array, a whole shard at a time: no shard is written twice."""

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
    """A small array in one chunk."""
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
    """Write the pixels of a part, slide after slide, whole or not at all.

    Args:
        slides: consumed one at a time; a slide without tiles is left out.
        size_px: side of a tile.
        mpp: µm/px of a tile.
        settings: what made the pixels; JSON types only.
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
    """An open store of encoded tiles; reads nothing but small arrays until asked.

    Attributes:
        slide_id: names of the S slides.
        slide: (N,) int32, index into `slide_id`.
        tile: (N,) int32, index in the slide's tile table.
        size_px: side of a tile.
        mpp: µm/px of a tile.
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
        """The JPEGs of tiles `start` to `stop`, in one range read."""
        if stop <= start:
            return []
        offset = self._offset[start : stop + 1]
        data = self._jpeg.read(int(offset[0]), int(offset[-1])).data
        inner = (offset - offset[0]).tolist()
        return [data[a:b].tobytes() for a, b in pairwise(inner)]

    def images(self, index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """The tiles of `index` (n,), decoded, in its order: (n, H, W, 3) uint8 RGB.

        Raises:
            ValueError: a JPEG that cannot be decoded.
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
        """The stain methods whose profiles are stored."""
        return sorted(self._group["profile"].keys()) if "profile" in self._group else []  # type: ignore[union-attr]

    def profile(self, method: str) -> Fields:
        """Stain profiles of the tiles: field → (N, ...)."""
        return self._fields("profile", method)

    def pooled(self, method: str) -> Fields:
        """Stain profiles of the slides: field → (S, ...), in the order of `slide_id`."""
        return self._fields("pooled", method)

    def _fields(self, name: str, method: str) -> Fields:
        place = f"{name}/{method}"
        if place not in self._group:
            return {}
        return {key: np.asarray(array[...]) for key, array in self._group[place].arrays()}  # type: ignore[union-attr]


def open_pixels(path: Path) -> Pixels:
    """Open the pixels of a part.

    Raises:
        StainsslError: the store is missing, half written or of another schema.
    """
    attributes(path, "pixels")
    return Pixels(zarr.open_group(path, mode="r"), path)


def consolidate(path: Path) -> None:
    """Note in a new store's root what it holds.

    Whoever opens it, as xarray does, need not list its folder then, where workflow engines leave
    files of their own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: it is an extension of the format
        zarr.consolidate_metadata(path)
