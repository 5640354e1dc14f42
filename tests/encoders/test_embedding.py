"""Embeddings are in the order of the tiles; a tile that cannot be decoded gets NaN."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch
from torch import nn

from stainssl.encoders import embedding as embed
from stainssl.encoders.embedding import embed_pixels
from stainssl.encoders.loading import LoadedEncoder
from stainssl.runtime.parallel import TimeSpent
from stainssl.runtime.prefetch import prefetched
from stainssl.stores.pixels import SlidePixels, decode, encode, open_pixels, write_pixels


class MeanColor(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def _encoder(scale=1.0):
    mean, std = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1) / scale
    return LoadedEncoder(MeanColor(), 3, 8, mean, std, "bilinear", torch.device("cpu"))


def _write(path, jpegs):
    slides = [SlidePixels("s", np.arange(len(jpegs), dtype=np.int32), jpegs)]
    write_pixels(path, slides, size_px=16, mpp=0.5, settings={})
    return open_pixels(path)


def _embed(encoder, pixels, batch=None):
    return [mine for (mine,) in embed_pixels([encoder], pixels, batch)]


@pytest.fixture
def jpegs():
    return [encode(np.full((16, 16, 3), 10 * level, np.uint8)) for level in range(11)]


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_embeddings_are_in_the_order_of_the_tiles(tmp_path, jpegs, batch):
    blocks = _embed(_encoder(), _write(tmp_path / "p.zarr", jpegs), batch)
    assert all(len(block) <= batch and block.dtype == np.float16 for block in blocks)
    found = np.concatenate(blocks)
    np.testing.assert_allclose(found[:, 0] * 255, np.arange(11) * 10, atol=1)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_bad_jpeg_is_a_row_of_nan(tmp_path, jpegs, batch):
    jpegs[3] = b"not a jpeg"
    jpegs[5] = encode(np.zeros((8, 8, 3), np.uint8))  # of another size
    found = np.concatenate(_embed(_encoder(), _write(tmp_path / "p.zarr", jpegs), batch))
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == [3, 5]
    np.testing.assert_allclose(found[10] * 255, 100, atol=1)


@pytest.mark.parametrize("size", [1e-8, 1e-5, 1, 1e6])
def test_embeddings_of_any_magnitude_keep_their_precision(tmp_path, jpegs, size):
    encoder = _encoder(size)
    found = np.concatenate(_embed(encoder, _write(tmp_path / "p.zarr", jpegs)))
    assert encoder.scale == 2.0 ** round(np.log2(encoder.scale))
    values = found[:, 0].astype(np.float64) / encoder.scale / size * 255
    np.testing.assert_allclose(values, np.arange(11) * 10, atol=1)
    assert len(np.unique(found[:, 0])) == 11


def test_an_embedding_outside_the_range_of_float16_is_nan(tmp_path, jpegs):
    encoder = _encoder()
    encoder.__dict__["scale"] = 1e6
    found = np.concatenate(_embed(encoder, _write(tmp_path / "p.zarr", jpegs)))
    assert np.isnan(found[10]).all()
    assert not np.isnan(found[0]).any()


def test_each_tile_is_decoded_once_for_two_encoders(tmp_path, jpegs, monkeypatch):
    decoded = []
    spy = lambda jpeg, out=None: decoded.append(jpeg) or decode(jpeg, out)  # noqa: E731
    monkeypatch.setattr(embed, "decode", spy)
    pixels = _write(tmp_path / "p.zarr", jpegs)
    pairs = list(embed_pixels([_encoder(), _encoder(2.0)], pixels, 4))
    assert decoded == jpegs
    for one, two in pairs:
        np.testing.assert_allclose(one * 2, two, rtol=2e-3)
    np.testing.assert_array_equal(
        np.concatenate([two for _, two in pairs]), np.concatenate(_embed(_encoder(2.0), pixels))
    )


def test_no_tiles_give_no_embeddings(tmp_path):
    write_pixels(tmp_path / "p.zarr", [], size_px=16, mpp=0.5, settings={})
    assert _embed(_encoder(), open_pixels(tmp_path / "p.zarr")) == []


def test_prefetching_keeps_order_and_passes_errors_on():
    assert list(prefetched(iter(range(50)), depth=3)) == list(range(50))

    def fails():
        yield 1
        raise KeyError("two")

    items = prefetched(fails())
    assert next(items) == 1
    with pytest.raises(KeyError, match="two"):
        next(items)


def test_prefetching_stops_when_the_iterator_is_closed():
    made = []

    def endless():
        while True:
            made.append(len(made))
            yield made[-1]

    before = threading.active_count()
    items = prefetched(endless(), depth=2)
    assert next(items) == 0
    assert threading.active_count() == before + 1
    items.close()
    assert threading.active_count() == before
    assert len(made) <= 5


class SmallDevice(MeanColor):
    """A network on a device that holds two tiles at a time."""

    def forward(self, x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(x)


def test_a_batch_that_does_not_fit_in_memory_is_halved_with_a_warning(tmp_path, jpegs, caplog):
    pixels = _write(tmp_path / "p.zarr", jpegs)
    small = dataclasses.replace(_encoder(), model=SmallDevice())
    np.testing.assert_array_equal(
        np.concatenate(_embed(small, pixels)), np.concatenate(_embed(_encoder(), pixels))
    )
    assert "11 tiles does not fit in the device's memory: trying half" in caplog.text


def test_a_batch_size_that_did_not_fit_is_not_tried_again(tmp_path, jpegs, caplog):
    small = dataclasses.replace(_encoder(), model=SmallDevice())
    list(embed_pixels([small], _write(tmp_path / "p.zarr", jpegs), 4))
    assert caplog.text.count("4 tiles does not fit in the device's memory") == 1  # in three blocks


def test_the_time_spent_is_reported_by_activity(tmp_path, jpegs):
    spent = TimeSpent()
    list(embed_pixels([_encoder()], _write(tmp_path / "p.zarr", jpegs), 4, spent))
    line = spent.line(11, "tiles")
    assert all(name in line for name in ("waiting for tiles", "network", "writing"))
