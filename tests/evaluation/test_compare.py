"""Comparisons are paired, right on known values, and corrected for their number."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from stainssl.errors import StainsslError
from stainssl.evaluation.compare import (
    bootstrap_p,
    compare_all,
    compare_two,
    delong,
    holm,
    paired_bootstrap,
)
from stainssl.evaluation.metrics import ScoredUnits


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


def test_delong_equals_its_definition_with_ties(rng):
    y = rng.random(60) < 0.4
    a, b = np.round(y + rng.normal(size=60), 1), np.round(0.3 * y + rng.normal(size=60), 1)
    value, variance = _delong_by_definition(y, a, b)
    found = delong(y, a, b)
    assert found.value == pytest.approx(value)
    assert found.value == pytest.approx(roc_auc_score(y, a) - roc_auc_score(y, b))
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance))


def test_delong_on_a_case_worked_by_hand():
    # Positives 3 and 1 against negatives 2 and 0: AUROC 3/4; the second scores are perfect.
    y = np.array([True, True, False, False])
    found = delong(y, np.array([3.0, 1, 2, 0]), np.array([3.0, 2, 1, 0]))
    # components of the first: positives (1, 1/2), negatives (1/2, 1); variance 1/16 + 1/16.
    assert found.value == pytest.approx(-0.25)
    assert found.high - found.value == pytest.approx(1.959964 * np.sqrt(1 / 8))


def test_delong_of_equal_ranks_is_no_difference():
    y = np.array([True, False, True, False, False])
    score = np.arange(5.0)
    found = delong(y, score, 10 * score)
    assert (found.value, found.p) == (0.0, 1.0)
    assert np.isnan(delong(np.array([True, False, False]), np.arange(3.0), np.arange(3.0)).p)


def test_the_bootstrap_agrees_with_delong_on_independent_patients(rng):
    y = rng.random(300) < 0.5
    a, b = y + rng.normal(size=300), 0.6 * y + rng.normal(size=300)
    found = compare_two([_predictions(y * 1, a)], [_predictions(y * 1, b)], "patient")
    exact = delong(y, a, b)
    assert found["difference"] == pytest.approx(exact.value)
    assert found["low"] == pytest.approx(exact.low, abs=0.015)
    assert found["high"] == pytest.approx(exact.high, abs=0.015)
    assert found["p_delong"] == pytest.approx(exact.p)


def test_no_difference_is_rarely_significant():
    rng = np.random.default_rng(1)
    found = 0
    for trial in range(100):
        y = np.arange(50) % 2
        p = 1 / (1 + np.exp(-(y[None] + rng.normal(size=(2, 50)))))
        one, two = (ScoredUnits(y, np.c_[1 - s, s], np.arange(50), ("0", "1")) for s in p)
        drawn = paired_bootstrap([one], [two], metric="auroc", resamples=200, seed=trial)
        found += drawn.p < 0.05
    assert found / 100 < 0.13


def test_only_shared_units_are_compared_and_seeds_are_averaged(rng):
    y = np.arange(40) % 2
    frames = [_predictions(y, s * y + rng.normal(size=40)) for s in (1, 1, 2)]
    found = compare_two(frames[:2], [frames[2].iloc[:30]], "patient", resamples=50)
    assert found["patients"] == 30
    aurocs = [roc_auc_score(y[:30], f["p_1"][:30]) for f in frames]
    assert found["difference"] == pytest.approx(np.mean(aurocs[:2]) - aurocs[2])
    assert np.isnan(found["p_delong"])


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


def test_holm_on_a_known_family():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert np.isnan(holm([0.01, float("nan")])[1])
    assert holm([0.01, float("nan")])[0] == pytest.approx(0.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p):
    corrected = np.array(holm(p))
    assert (corrected >= np.array(p) - 1e-15).all()
    assert (corrected <= 1).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


def test_bootstrap_p_is_two_sided_and_never_zero():
    assert bootstrap_p(np.ones(99)) == pytest.approx(0.02)
    assert bootstrap_p(-np.ones(99)) == pytest.approx(0.02)
    assert bootstrap_p(np.zeros(99)) == 1.0
    assert np.isnan(bootstrap_p(np.full(9, np.nan)))
