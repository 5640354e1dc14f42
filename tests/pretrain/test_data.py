"""Training tiles: order, blocks, memory, bad JPEGs, and shares of several processes."""

from __future__ import annotations

from multiprocessing import get_context

import numpy as np
import pytest
import torch
import torchvision

from stainssl.errors import StainsslError
from stainssl.pretrain import data
from stainssl.pretrain.data import Stream, TrainTiles
from stainssl.stores.pixels import SlidePixels, encode, open_pixels, write_pixels


@pytest.fixture
def stores(tmp_path):
    """Two parts of 70 and 30 tiles, each tile with a different grey level."""
    opened = []
    for part, levels in enumerate((range(70), range(70, 100))):
        jpeg = [encode(np.full((16, 16, 3), 2 * level, np.uint8)) for level in levels]
        slides = [SlidePixels(f"s{part}", np.arange(len(jpeg), dtype=np.int32), jpeg)]
        path = tmp_path / f"{part}.zarr"
        write_pixels(path, slides, size_px=16, mpp=0.5, settings={})
        opened.append(open_pixels(path))
    return opened


def _levels(batch):
    return (batch.images.float().mean((1, 2, 3)) / 2).round().long().numpy()


def _whole(order):
    return order.take(0, len(order))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("workers", [1, 3])
def test_tiles_are_returned_in_the_requested_order(stores, rng, cache_bytes, workers):
    tiles = TrainTiles(stores, cache_bytes=cache_bytes, workers=workers)
    for _ in range(2):  # the second time from the cache, if there is one
        index = rng.permutation(100)
        batch = tiles.batch(index)
        assert batch.images.shape == (100, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        np.testing.assert_array_equal(batch.tile, index)
        assert int(np.abs(_levels(batch) - batch.tile).max()) <= 1


def test_an_epoch_is_a_permutation_and_epochs_and_seeds_differ(stores):
    tiles = TrainTiles(stores)
    orders = [_whole(tiles.order(seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(100))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    np.testing.assert_array_equal(orders[0], orders[3])


def test_memory_is_reused_once_all_tensors_of_a_batch_are_deleted(stores):
    tiles = TrainTiles(stores)
    index = np.arange(10)
    address = tiles.batch(index).images.data_ptr()
    held = tiles.batch(index).images[3:5, :, 2:8]  # a view keeps the memory of its batch
    assert held.data_ptr() - address == 3 * 16 * 16 * 3 + 2 * 16 * 3
    expected = held.clone()
    other = tiles.batch(index + 50).images
    assert other.data_ptr() != address
    assert torch.equal(held, expected)
    del held
    assert tiles.batch(index).images.data_ptr() == address


def test_a_buffer_holds_whole_blocks(stores, monkeypatch):
    monkeypatch.setattr(data, "BLOCK", 5)
    monkeypatch.setattr(data, "BUFFER", 2)
    data._order.cache_clear()
    order = _whole(TrainTiles(stores).order(0, 0))
    for start in range(0, 100, 10):
        assert len(set(order[start : start + 10] // 5)) == 2
    data._order.cache_clear()


def test_a_block_is_read_once_per_buffer(stores, monkeypatch):
    reads = []
    for store in stores:
        true = store.jpegs
        monkeypatch.setattr(store, "jpegs", lambda a, b, true=true: reads.append(a) or true(a, b))
    tiles = TrainTiles(stores, cache_bytes=0)
    for start in range(0, 100, 10):
        tiles.batch(tiles.order(0, 0).take(start, start + 10))
    assert len(reads) == 3  # 64 + 6 tiles of the first store, 30 of the second


def test_the_stream_can_start_at_any_step(stores):
    stream = Stream(TrainTiles(stores), batch_size=8, steps=30, seed=4)
    whole = [batch.tile.tolist() for batch in stream]
    assert len(whole) == 30
    assert stream.steps_per_epoch == 12
    assert len({tile for batch in whole[:12] for tile in batch}) == 96  # no tile twice
    stream.start = 17
    assert [batch.tile.tolist() for batch in stream] == whole[17:]


@pytest.fixture(params=["no jpeg", "too small"])
def bad_store(tmp_path, request):
    """A store of four tiles; the third is not a JPEG or has another size."""
    small = encode(np.full((1, 1, 3), 50, np.uint8))
    bad = b"not a jpeg" if request.param == "no jpeg" else small
    jpeg = [encode(np.full((16, 16, 3), 50, np.uint8)) for _ in range(4)]
    jpeg[2] = bad
    slides = [SlidePixels("s-bad", np.arange(4, dtype=np.int32), jpeg)]
    write_pixels(tmp_path / "x.zarr", slides, size_px=16, mpp=0.5, settings={})
    return open_pixels(tmp_path / "x.zarr")


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_a_bad_jpeg_is_replaced_by_another_tile_and_logged(bad_store, caplog, cache_bytes):
    tiles = TrainTiles([bad_store], cache_bytes=cache_bytes)
    for _ in range(2):
        assert tiles.batch(np.arange(4)).tile.tolist() == [0, 1, 0, 3]
    assert caplog.text.count("s-bad") == 1
    with pytest.raises(StainsslError, match="cannot be decoded"):
        tiles.batch(np.array([2, 1]))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_a_batch_in_use_is_not_overwritten(stores, cache_bytes):
    tiles = TrainTiles(stores, cache_bytes=cache_bytes)
    held = [tiles.batch(np.arange(start, start + 10)) for start in range(0, 60, 10)]
    for batch in held:
        assert int(np.abs(_levels(batch) - batch.tile).max()) <= 1
    addresses = {batch.images.data_ptr() for batch in held}
    assert len(addresses) == 6
    del held, batch
    # The memory is reused once the batches are deleted.
    assert tiles.batch(np.arange(10)).images.data_ptr() in addresses


def test_processes_share_the_tiles_of_a_step(stores, rng):
    tiles, everyone = TrainTiles(stores), rng.permutation(100)[:12]
    shares = [tiles.batch(everyone, rank, 3) for rank in range(3)]
    assert np.concatenate([share.tile for share in shares]).tolist() == everyone.tolist()
    for share in shares:
        np.testing.assert_array_equal(share.everyone[share.rows], share.tile)


def _in_another_process(stream):
    return [batch.tile.tolist() for batch in stream], stream._tiles.batch(np.arange(5)).images


def test_a_spawned_process_reads_the_same_tiles(stores):
    stream = Stream(TrainTiles(stores, cache_bytes=0, workers=2), batch_size=8, steps=3, seed=1)
    with get_context("spawn").Pool(1) as pool:
        order, images = pool.apply(_in_another_process, (stream,))
    assert order == [batch.tile.tolist() for batch in stream]
    assert torch.equal(images, stream._tiles.batch(np.arange(5)).images)


def _nvjpeg(encoded, mode, device):
    assert device == "cuda"
    if any(bytes(e.numpy()) == b"not a jpeg" for e in encoded):
        raise RuntimeError("nvJPEG: bad marker")
    return [torchvision.io.decode_jpeg(e, mode=mode) for e in encoded]


def test_tiles_are_decoded_on_the_gpu_or_on_the_cpu_if_that_fails(
    stores, bad_store, monkeypatch, caplog
):
    true = torchvision.io.decode_jpeg
    monkeypatch.setattr(
        torchvision.io, "decode_jpeg",
        lambda e, mode, device=None: _nvjpeg(e, mode, device) if device else true(e, mode=mode),
    )  # fmt: skip
    tiles = TrainTiles(stores, gpu=True)
    batch = tiles.batch(np.arange(30))
    assert int(np.abs(_levels(batch) - batch.tile).max()) <= 1
    assert "failed" not in caplog.text
    assert TrainTiles([bad_store], gpu=True).batch(np.arange(4)).tile.tolist() == [0, 1, 0, 3]
    assert "left out" in caplog.text


def test_a_single_tile_is_refused(tmp_path):
    slides = [SlidePixels("s", np.zeros(1, np.int32), [encode(np.zeros((16, 16, 3), np.uint8))])]
    write_pixels(tmp_path / "x.zarr", slides, size_px=16, mpp=0.5, settings={})
    with pytest.raises(StainsslError, match="at least two tiles, found 1"):
        TrainTiles([open_pixels(tmp_path / "x.zarr")])
