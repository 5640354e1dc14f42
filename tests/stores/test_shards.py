"""Bytes read directly from the file of a shard are those of zarr, or are left to zarr."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from stainssl.stores.shards import read_plain

CHUNK, CHUNKS = 16, 4
VALUES = np.random.default_rng(0).integers(1, 256, 100).astype(np.uint8)


def write_shard(folder: Path, compressors: str | None = None) -> Path:
    array = zarr.create_array(
        folder / "a", shape=VALUES.shape, dtype="uint8", chunks=(CHUNK,), shards=(CHUNK * CHUNKS,),
        compressors=compressors,
    )  # fmt: skip
    array[:] = VALUES
    return folder / "a" / "c" / "1"  # the second shard, which has 36 bytes


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("plain"))


@settings(deadline=None)
@given(st.integers(0, 35), st.integers(1, 36))
def test_any_range_is_read_as_written(shard: Path, start: int, stop: int) -> None:
    out = np.zeros(max(1, stop - start), np.uint8)
    assert read_plain(shard, start, out, chunk_bytes=CHUNK, chunks=CHUNKS)
    first = CHUNK * CHUNKS + start
    assert np.array_equal(out[: 100 - first], VALUES[first : first + len(out)])


def test_missing_compressed_and_truncated_shards_are_left_to_zarr(tmp_path: Path) -> None:
    out = np.zeros(8, np.uint8)
    assert not read_plain(tmp_path / "none", 0, out, chunk_bytes=CHUNK, chunks=CHUNKS)
    packed = write_shard(tmp_path, "auto")
    assert not read_plain(packed, 0, out, chunk_bytes=CHUNK, chunks=CHUNKS)
    assert not read_plain(packed, 8 * CHUNK, out, chunk_bytes=CHUNK, chunks=CHUNKS)
    (tmp_path / "cut").write_bytes(b"short")
    assert not read_plain(tmp_path / "cut", 0, out, chunk_bytes=CHUNK, chunks=CHUNKS)
