"""Bags of usable tiles: building, sampling, padding and statistics."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stainssl.mil import bags as bagging
from stainssl.mil.bags import build, pad, sample_tiles, statistics, valid_tiles


def _slide(n: int, value: float):
    index = np.arange(n)
    return valid_tiles(np.full((n, 3), value, np.float16), np.ones(n, bool), index, index, index)


SLIDES = pd.DataFrame(
    {
        "slide_id": ["s1", "s2", "s3", "s4"],
        "patient_id": ["p1", "p2", "p1", "p3"],
        "site": ["a", "b", "c", "a"],
        "label": [1, 0, 1, 0],
    }
)
TILES = {"s1": _slide(2, 1), "s2": _slide(3, 2), "s3": _slide(4, 3), "s4": _slide(0, 4)}


def test_tiles_that_could_not_be_read_are_dropped():
    features = np.ones((4, 2), np.float16)
    features[[1, 3]] = np.nan
    kept = valid_tiles(features, np.isfinite(features[:, 0]), np.arange(4) + 7, *[np.arange(4)] * 2)
    assert kept.tile.tolist() == [7, 9]
    assert np.isfinite(kept.features).all()


def test_the_bag_of_a_patient_has_the_tiles_of_all_slides():
    bags, empty = build(SLIDES, "patient", TILES.__getitem__)
    assert [(bag.patient_id, len(bag), bag.label, bag.site) for bag in bags] == [
        ("p1", 6, 1, "a+c"),
        ("p2", 3, 0, "b"),
    ]
    assert bags[0].slides == ("s1", "s3")
    assert empty == ["p3"]


def test_the_bag_of_a_slide_has_its_tiles_only():
    bags, empty = build(SLIDES, "slide", TILES.__getitem__)
    assert [(bag.slide_id, len(bag)) for bag in bags] == [("s1", 2), ("s2", 3), ("s3", 4)]
    assert empty == ["s4"]


def test_a_slide_without_tiles_is_left_out_of_the_bag_of_its_patient():
    tiles = TILES | {"s1": _slide(0, 1)}
    bags, empty = build(SLIDES, "patient", tiles.__getitem__)
    assert bags[0].slides == ("s3",)
    assert len(bags[0]) == 4
    assert empty == ["p3"]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    chunk=st.integers(1, 12),
    data=st.data(),
)
def test_rows_and_chunks_read_across_slides(lengths, chunk, data):
    slides = [f"s{i}" for i in range(len(lengths))]
    tiles = {s: _slide(n, i) for i, (s, n) in enumerate(zip(slides, lengths, strict=True))}
    sheet = pd.DataFrame({"slide_id": slides, "patient_id": "p", "site": "a", "label": 0})
    (bag,), _ = build(sheet, "patient", tiles.__getitem__)
    whole = np.concatenate(list(bag.chunks(chunk)))
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole[:, 0], np.repeat(np.arange(len(lengths)), lengths))
    wanted = data.draw(st.sets(st.integers(0, sum(lengths) - 1), min_size=1))
    index = np.array(sorted(wanted))
    np.testing.assert_array_equal(bag.rows(index), whole[index])


@given(n=st.integers(1, 50), most=st.integers(1, 50), seed=st.integers(0, 9))
def test_sample_tiles_is_without_replacement_ascending_and_reproducible(n, most, seed):
    drawn = sample_tiles(n, most, np.random.default_rng(seed))
    assert len(drawn) == min(n, most)
    assert (np.diff(drawn) > 0).all()
    assert drawn.min() >= 0
    assert drawn.max() < n
    np.testing.assert_array_equal(drawn, sample_tiles(n, most, np.random.default_rng(seed)))


def test_padding_is_zero_and_masked():
    features, mask = pad([np.ones((2, 3), np.float16), np.full((4, 3), 2, np.float16)])
    assert features.shape == (2, 4, 3)
    assert mask.sum(1).tolist() == [2, 4]
    assert not features[~mask].any()


def test_padding_into_reused_memory_gives_the_same():
    bags = [np.ones((2, 3), np.float16), np.full((4, 3), 2, np.float16)]
    memory = torch.full((100,), 7.0)
    features, mask = pad(bags, memory)
    wanted, wanted_mask = pad(bags)
    assert torch.equal(features, wanted)
    assert torch.equal(mask, wanted_mask)


def test_statistics_are_those_of_all_tiles(make_bag):
    bags = [make_bag(i, 1, n=11 + i, shift=2.0, slides=2) for i in range(5)]
    everything = np.concatenate([block for bag in bags for block in bag.chunks(99)])
    mean, std = statistics(bags)
    np.testing.assert_allclose(mean, everything.mean(0), atol=1e-6)
    np.testing.assert_allclose(std, everything.std(0), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.0, 30_000.0])
def test_a_constant_feature_has_standard_deviation_one(value):
    sheet = SLIDES.iloc[:2].assign(patient_id=["p1", "p2"])
    bags, _ = build(sheet, "patient", lambda _: _slide(5, value))
    mean, std = statistics(bags)
    assert mean.tolist() == [value] * 3
    assert std.tolist() == [1.0] * 3


def test_statistics_of_a_large_slide_use_evenly_spaced_tiles(make_bag, monkeypatch):
    whole, spread = statistics([make_bag(0, 1, n=1000, shift=3.0)])
    monkeypatch.setattr(bagging, "MOMENT_TILES", 100)
    bag = make_bag(0, 1, n=1000, shift=3.0)
    mean, std = statistics([bag])
    np.testing.assert_allclose(mean, bag.tiles[0].features[::10].astype(float).mean(0), atol=1e-5)
    np.testing.assert_allclose(mean, whole, atol=1.0)
    np.testing.assert_allclose(std, spread, rtol=0.5)
