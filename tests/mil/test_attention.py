"""Attention is averaged over repeats and ranked within each slide."""

from __future__ import annotations

import numpy as np

from stainssl.mil.attention import COLUMNS, AttentionMean, attention_table, percentile_ranks


def test_attention_is_averaged_over_repeats_and_ranked_within_slides(make_bag):
    bag = make_bag(0, 1, n=3, slides=2)
    mean = AttentionMean()
    mean.add(bag, np.array([0.1, 0.2, 0.3, 0.0, 0.4, 0.0]))
    mean.add(bag, np.array([0.1, 0.4, 0.1, 0.2, 0.0, 0.2]))
    table = attention_table([bag, make_bag(1, 0)], mean.means())
    assert table["slide_id"].tolist() == ["p0-s0"] * 3 + ["p0-s1"] * 3
    np.testing.assert_allclose(table["attention"], [1 / 3, 1, 2 / 3, 0.5, 1, 0.5], rtol=1e-6)
    assert table["x"].tolist() == [0, 256, 512] * 2
    assert list(table) == COLUMNS


def test_bags_never_tested_give_an_empty_table(make_bag):
    table = attention_table([make_bag(0, 1)], {})
    assert table.empty
    assert list(table) == COLUMNS


def test_ties_have_their_mean_rank():
    np.testing.assert_allclose(percentile_ranks(np.zeros(4)), 0.625)
