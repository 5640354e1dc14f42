"""Permutation test of two paired AUROCs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from stainssl.evaluation.compare import floor_p, least_p
from stainssl.evaluation.permutation import MAX_PATIENTS, permutation_p
from stainssl.evaluation.predictions import FoldScores, ScoredUnits


def _units(y: np.ndarray, score: np.ndarray, folds: list[np.ndarray] | None = None) -> ScoredUnits:
    p = np.stack([1 - score, score], axis=1)
    parts = tuple(FoldScores(0, unit, p[unit]) for unit in folds or [np.arange(len(y))])
    return ScoredUnits(y, p, np.arange(len(y)), ("0", "1"), parts)


def _drawn(n: int, seed: int, decimals: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 2)
    return y, rng.random(n).round(decimals), rng.random(n).round(decimals)


@given(st.integers(4, 8), st.integers(0, 300), st.sampled_from([1, 6]))
@settings(deadline=None, max_examples=15)
def test_p_value_equals_an_enumeration_of_all_exchanges(n, seed, decimals):
    y, first, second = _drawn(n, seed, decimals)
    ranks = np.stack([rankdata(first), rankdata(second)])
    differences = []
    for exchange in product((0, 1), repeat=n):
        one = ranks[list(exchange), np.arange(n)]
        other = ranks[1 - np.array(exchange), np.arange(n)]
        differences.append(abs(roc_auc_score(y, one) - roc_auc_score(y, other)))
    expected = np.mean(np.array(differences) >= differences[0] - 1e-9)
    assert permutation_p(_units(y, first), _units(y, second)) == pytest.approx(expected)


@given(st.integers(0, 100))
@settings(deadline=None, max_examples=10)
def test_p_value_does_not_depend_on_fold_levels_or_the_order_of_sides(seed):
    y, first, second = _drawn(12, seed)
    halves = [np.arange(6), np.arange(6, 12)]
    p = permutation_p(_units(y, first, halves), _units(y, second, halves))
    moved = np.where(np.arange(12) < 6, second / 3, 0.5 + second / 3)
    assert permutation_p(_units(y, first, halves), _units(y, moved, halves)) == pytest.approx(p)
    assert permutation_p(_units(y, second, halves), _units(y, first, halves)) == pytest.approx(p)


def test_false_positive_rate_is_at_most_five_percent():
    p = []
    for seed in range(400):
        y, first, second = _drawn(8, seed)
        p.append(permutation_p(_units(y, first), _units(y, second)))
    assert np.mean(np.array(p) < 0.05) < 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


def test_a_large_difference_is_significant():
    y = np.arange(16) % 2
    rng = np.random.default_rng(0)
    good, bad = _units(y, y + 0.1 * rng.random(16)), _units(y, rng.random(16))
    assert permutation_p(good, bad) < 0.05
    assert permutation_p(good, good) == 1.0


def test_floor_p_uses_it_only_for_auroc_of_few_patients_and_one_seed():
    y, first, second = _drawn(MAX_PATIENTS, 0)
    small = [_units(y, first)], [_units(y, second)]
    assert floor_p("auroc", *small) == permutation_p(small[0][0], small[1][0])
    assert floor_p("brier", *small) == least_p(small[0][0])
    assert floor_p("auroc", small[0] * 2, small[1]) == least_p(small[0][0])
    y, first, second = _drawn(MAX_PATIENTS + 2, 0)
    large = _units(y, first)
    assert floor_p("auroc", [large], [_units(y, second)]) == least_p(large)
