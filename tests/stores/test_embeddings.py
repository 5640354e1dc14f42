"""The rows of a slide are contiguous; a tile that could not be embedded is NaN and not valid."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from stainssl.stores import embeddings as store
from stainssl.stores.embeddings import Embeddings, open_embeddings, write_embeddings
from stainssl.stores.pixels import consolidate


def _write(path: Path, features: np.ndarray, counts: list[int], block: int) -> store.Embeddings:
    n = len(features)
    write_embeddings(
        path,
        slide_id=[f"s{i}" for i in range(len(counts))],
        counts=counts,
        dim=features.shape[1],
        blocks=(features[i : i + block] for i in range(0, n, block)),
        tile=np.arange(n, dtype=np.int32),
        x=np.arange(n) * 100,
        y=np.zeros(n, np.int64),
        settings={"encoder": "random"},
    )
    return open_embeddings(path)


def _valid_embeddings(back: Embeddings, slide_id: str) -> np.ndarray:
    """The valid embeddings of a slide, in tile order."""
    rows = back.rows(slide_id)
    return back.read(rows)[back.valid[rows]]


@pytest.mark.parametrize("block", [1, 7, 100])
def test_slides_are_read_back_for_any_block_size(
    tmp_path: Path, rng: np.random.Generator, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CHUNK_ROWS", 4)
    monkeypatch.setattr(store, "SHARD_ROWS", 8)
    features = rng.normal(size=(30, 5)).astype(np.float16)
    features[12] = np.nan
    back = _write(tmp_path / "e.zarr", features, [10, 0, 20], block)
    assert np.array_equal(_valid_embeddings(back, "s0"), features[:10])
    assert _valid_embeddings(back, "s1").shape == (0, 5)
    assert np.array_equal(_valid_embeddings(back, "s2"), np.delete(features[10:], 2, axis=0))
    assert np.flatnonzero(~back.valid).tolist() == [12]
    assert len(back) == 30
    assert _valid_embeddings(back, "unknown").shape == (0, 5)


def test_too_few_embeddings_leave_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vectors for"):
        write_embeddings(
            tmp_path / "e.zarr", slide_id=["a"], counts=[3], dim=2,
            blocks=[np.zeros((2, 2), np.float16)], tile=np.zeros(3, np.int32),
            x=np.zeros(3, np.int64), y=np.zeros(3, np.int64), settings={},
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_an_empty_part_is_a_valid_store_and_xarray_reads_stores(tmp_path: Path) -> None:
    assert len(_write(tmp_path / "none.zarr", np.zeros((0, 4), np.float16), [], 1)) == 0
    _write(tmp_path / "e.zarr", np.ones((6, 4), np.float16), [6], 6)
    data = xr.open_zarr(tmp_path / "e.zarr", consolidated=False)
    assert data["features"].dims == ("tile", "feature")
    assert float(data["features"].sum()) == 24


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("rows", [slice(0, 0), slice(0, 9), slice(3, 30), slice(14, 41)])
def test_rows_read_directly_from_files_are_those_of_zarr(
    tmp_path, monkeypatch, rng, compressed, rows
):
    """Chunks of 4 rows, shards of 16; zarr reads stores that are compressed."""
    monkeypatch.setattr(store, "CHUNK_ROWS", 4)
    monkeypatch.setattr(store, "SHARD_ROWS", 16)
    features, index = rng.normal(size=(41, 3)).astype(np.float16), np.arange(41)
    write_embeddings(
        tmp_path / "e.zarr", slide_id=["s"], counts=[41], dim=3, blocks=[features],
        tile=index.astype(np.int32), x=index, y=index, settings={},
    )  # fmt: skip
    if compressed:
        group = zarr.open_group(tmp_path / "e.zarr", mode="a", use_consolidated=False)
        del group["features"]
        group.create_array("features", data=features, chunks=(4, 3), shards=(16, 3))
        consolidate(tmp_path / "e.zarr")
    np.testing.assert_array_equal(open_embeddings(tmp_path / "e.zarr").read(rows), features[rows])


@pytest.mark.parametrize("rows", [0, 1, 8, 21])
@pytest.mark.parametrize("again", [None, {"chunks": (5,)}, {"chunks": (4,), "shards": (8,)}])
def test_columns_read_directly_are_those_of_zarr(tmp_path, monkeypatch, rng, rows, again):
    """As written by this version, and compressed or sharded by another."""
    monkeypatch.setattr(store, "CHUNK_ROWS", 4)
    monkeypatch.setattr(store, "SHARD_ROWS", 8)
    x = rng.integers(-5, 2**40, rows)
    write_embeddings(
        tmp_path / "e.zarr", slide_id=["s"], counts=[rows], dim=1, x=x, y=x * 0, settings={},
        blocks=[np.ones((rows, 1), np.float16)], tile=np.arange(rows, dtype=np.int32),
    )  # fmt: skip
    group = zarr.open_group(tmp_path / "e.zarr", mode="a", use_consolidated=False)
    if again:
        del group["x"]
        group.create_array("x", data=x, **again)
        consolidate(tmp_path / "e.zarr")
    found = open_embeddings(tmp_path / "e.zarr")
    for name in ("tile", "x", "y", "valid", "start"):
        expected = np.asarray(group[name][...])
        np.testing.assert_array_equal(getattr(found, name), expected)
        assert getattr(found, name).dtype == expected.dtype


@pytest.mark.parametrize("counts", [[20, 18], [store.CHUNK_ROWS + 1], [0], []])
def test_a_small_store_is_hardly_larger_than_its_embeddings(
    tmp_path: Path, counts: list[int]
) -> None:
    embeddings = np.random.default_rng(0).normal(size=(sum(counts), 64)).astype(np.float16)
    found = _write(tmp_path / "part.zarr", embeddings, counts, 1000)
    files = [path for path in (tmp_path / "part.zarr/features").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1.01 * embeddings.nbytes + 5_000
    np.testing.assert_array_equal(found.read(slice(0, len(embeddings))), embeddings)
    np.testing.assert_array_equal(np.asarray(found.features[:]), embeddings)


def test_xarray_opens_a_store_with_a_snakemake_timestamp_without_a_warning(tmp_path: Path) -> None:
    _write(tmp_path / "part.zarr", np.ones((3, 4), np.float16), [3], 3)
    (tmp_path / "part.zarr" / ".snakemake_timestamp").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert xr.open_zarr(tmp_path / "part.zarr").sizes["tile"] == 3
