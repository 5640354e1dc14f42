"""Paired comparisons: known values, lower bounds of p-values, and Holm's correction."""

from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from stainssl.errors import StainsslError
from stainssl.evaluation.compare import (
    compare_all,
    compare_two,
    holm,
    least_p,
    mean_over_seeds,
    paired_difference,
    resamples_for,
)
from stainssl.evaluation.intervals import drawn_estimate, p_value
from stainssl.evaluation.predictions import FoldScores, ScoredUnits, read_scored


def _predictions(y: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    p = 1 / (1 + np.exp(-score))
    ids = [f"p{i}" for i in range(len(y))]
    return pd.DataFrame({"patient_id": ids, "slide_id": "", "y": y, "p_0": 1 - p, "p_1": p})


def _delong_by_definition(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    # Sen's structural components, pair by pair (DeLong et al. 1988, equations 3-6).
    def psi(s: np.ndarray) -> np.ndarray:
        pos, neg = s[y][:, None], s[~y][None]
        return (pos > neg) + 0.5 * (pos == neg)

    v10 = np.stack([psi(s).mean(1) for s in (a, b)])
    v01 = np.stack([psi(s).mean(0) for s in (a, b)])
    cov = np.cov(v10) / y.sum() + np.cov(v01) / (~y).sum()
    return v10.mean(1) @ [1, -1], cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]


def test_difference_of_many_patients_equals_delong_with_ties(rng):
    y = rng.random(600) < 0.4
    a, b = np.round(y + rng.normal(size=600), 1), np.round(0.6 * y + rng.normal(size=600), 1)
    value, variance = _delong_by_definition(y, a, b)
    found = compare_two([_predictions(y * 1, a)], [_predictions(y * 1, b)], "patient")
    assert found["difference"] == pytest.approx(value)
    assert found["difference"] == pytest.approx(roc_auc_score(y, a) - roc_auc_score(y, b))
    reach = 1.959964 * np.sqrt(variance)
    assert found["low"] == pytest.approx(value - reach, abs=0.006)
    assert found["high"] == pytest.approx(value + reach, abs=0.006)
    assert found["p"] == pytest.approx(2 * norm.sf(abs(value) / np.sqrt(variance)), rel=0.6)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_p_value_is_at_least_the_lowest_one_of_an_exact_test(n):
    y = np.repeat([0, 1], n)
    perfect, uninformative = _predictions(y, 4 * y - 2.0), _predictions(y, np.zeros(2 * n))
    found = compare_two([perfect], [uninformative], "patient")
    assert found["difference"] == pytest.approx(0.5)
    assert found["p"] >= 2 / comb(2 * n, n) - 1e-12


def test_least_p_counts_assignments_of_labels_by_fold_or_exchanges_of_patients():
    y = np.array([0, 0, 1, 0, 1, 2])
    p = np.full((6, 3), 1 / 3)
    folds = (FoldScores(0, np.arange(3), p[:3]), FoldScores(0, np.arange(3, 6), p[3:]))
    one = ScoredUnits(y, p, np.arange(6), ("0", "1", "2"), folds)
    assert least_p(one) == pytest.approx(2 / (3 * 6))
    assert least_p(ScoredUnits(y, p, np.arange(6) // 2, ("0", "1", "2"))) == 0.25


@pytest.mark.parametrize("n", [10, 50])
@pytest.mark.parametrize("tiles", [1, 4])
def test_false_positive_rate_without_a_difference(n, tiles):
    rng = np.random.default_rng(1)
    found = 0
    y, patient = np.repeat(np.arange(n) % 2, tiles), np.repeat(np.arange(n), tiles)
    for trial in range(100):
        score = y[None] + rng.normal(size=(2, n)).repeat(tiles, 1) + rng.normal(size=(2, n * tiles))
        p = 1 / (1 + np.exp(-score))
        one, two = (ScoredUnits(y, np.c_[1 - s, s], patient, ("0", "1")) for s in p)
        drawn = paired_difference([one], [two], metric="auroc", resamples=200, seed=trial)
        found += p_value(drawn) < 0.05
    assert found / 100 <= 0.11


def test_interval_of_the_mean_over_seeds_is_wider_than_over_patients_alone(rng):
    y = np.arange(40) % 2
    tables = [_predictions(y, s * y + rng.normal(size=40)) for s in (0.5, 1.5, 2.5)]
    scored = [read_scored(table, "patient") for table in tables]
    mean = mean_over_seeds("auroc", scored)
    assert mean.value == pytest.approx(np.mean([roc_auc_score(y, t["p_1"]) for t in tables]))
    alone = [np.diff(mean_over_seeds("auroc", [one]).interval)[0] for one in scored]
    assert np.diff(mean.interval)[0] > np.mean(alone)


def test_only_shared_units_are_compared_and_seeds_are_averaged(rng):
    y = np.arange(40) % 2
    frames = [_predictions(y, s * y + rng.normal(size=40)) for s in (1, 1, 2)]
    found = compare_two(frames[:2], [frames[2].iloc[:30]], "patient", resamples=50)
    assert found["patients"] == 30
    aurocs = [roc_auc_score(y[:30], f["p_1"][:30]) for f in frames]
    assert found["difference"] == pytest.approx(np.mean(aurocs[:2]) - aurocs[2])
    assert found["seeds"] == 2


def test_tables_of_different_labels_are_refused(rng):
    y = np.arange(20) % 2
    score = rng.normal(size=20)
    with pytest.raises(StainsslError, match="different labels"):
        compare_two([_predictions(y, score)], [_predictions(1 - y, score)], "patient")


def test_every_pair_is_compared_once(rng):
    y = np.arange(20) % 2
    frames = {name: [_predictions(y, rng.normal(size=20))] for name in "abc"}
    found = compare_all(frames, "patient", resamples=20)
    assert list(zip(found["first"], found["second"], strict=True)) == [
        ("a", "b"), ("a", "c"), ("b", "c"),
    ]  # fmt: skip


def test_holm_on_known_p_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert np.isnan(holm([0.01, float("nan")])[1])
    assert holm([0.01, float("nan")])[0] == pytest.approx(0.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p):
    corrected = np.array(holm(p))
    assert (corrected >= np.array(p) - 1e-15).all()
    assert (corrected <= 1).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("comparisons", [1, 10, 68, 240])
def test_a_clear_difference_can_be_significant_among_many_comparisons(comparisons: int) -> None:
    draws = np.random.default_rng(0).normal(0.4, 0.02, resamples_for(comparisons))
    clear = drawn_estimate(0.4, draws, 40)
    assert holm([p_value(clear), *[0.9] * (comparisons - 1)])[0] < 0.05


def test_compare_all_equals_compare_two_for_each_pair() -> None:
    rng = np.random.default_rng(3)
    y = np.tile([0, 1], 30)
    sides = {n: [_predictions(y, rng.normal(y * k, 1.0))] for k, n in enumerate("abc")}
    found = compare_all(sides, "patient", metric="auprc", resamples=200, seed=1)
    for row in found.to_dict("records"):
        one = compare_two(
            sides[row["first"]], sides[row["second"]], "patient",
            metric="auprc", resamples=200, seed=1,
        )  # fmt: skip
        assert {key: row[key] for key in one} == one
    fewer = {**sides, "c": [sides["c"][0].iloc[2:]]}
    units = compare_all(fewer, "patient", resamples=200).set_index(["first", "second"])["units"]
    assert units.to_dict() == {("a", "b"): 60, ("a", "c"): 58, ("b", "c"): 58}
