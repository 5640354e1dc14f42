"""Decision thresholds, net benefit and calibration curves."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score

from stainssl.evaluation.probe import Tiles, probe
from stainssl.evaluation.thresholds import (
    DecisionRule,
    best_threshold,
    calibration_curve,
    net_benefit,
    sensitive_threshold,
)


@given(data=st.data(), n=st.integers(2, 30))
def test_no_threshold_has_a_better_balanced_accuracy(data, n):
    score = data.draw(hnp.arrays(float, n, elements=st.floats(0, 1)))
    positive = np.arange(n) % 2 == 0
    found = best_threshold(positive, score)
    best = balanced_accuracy_score(positive, score >= found)
    for other in np.linspace(0, 1, 41):
        value = balanced_accuracy_score(positive, score >= other)
        assert value <= best + 1e-12


def test_ties_give_one_half_or_the_midpoint_nearest_to_it():
    assert best_threshold(np.array([False, True]), np.array([0.3, 0.9])) == 0.5
    assert best_threshold(np.array([False, True]), np.array([0.1, 0.3])) == pytest.approx(0.2)
    assert best_threshold(np.array([True, True]), np.array([0.1, 0.3])) == 0.5
    assert best_threshold(np.array([], bool), np.array([])) == 0.5


@given(n=st.integers(1, 40), share=st.floats(0.05, 1), seed=st.integers(0, 99))
def test_sensitive_threshold_is_the_highest_with_the_required_sensitivity(n, share, seed):
    score = np.random.default_rng(seed).random(n)
    found = sensitive_threshold(np.ones(n, bool), score, share)
    assert recall_score(np.ones(n), score >= found) >= share - 1e-9
    above = score[score > found]
    if len(above):
        assert (score >= above.min()).mean() < share - 1e-9 or np.isclose(
            (score >= above.min()).mean(), share
        )


def test_thresholds_need_two_classes_and_a_fixed_one_is_kept():
    y, p = np.array([0, 1]), np.array([[0.9, 0.1], [0.7, 0.3]])
    assert DecisionRule().thresholds(y, p) == {
        "threshold": pytest.approx(0.2),
        "threshold_rule_out": 0.3,
    }
    assert DecisionRule(threshold=0.4).thresholds(y, p)["threshold"] == 0.4
    assert DecisionRule().thresholds(y, np.ones((2, 3)) / 3) == {}


def test_net_benefit_equals_its_definition(rng):
    positive, score = rng.random(50) < 0.3, rng.random(50)
    for t, found in zip(
        (0.1, 0.5, 0.8), net_benefit(positive, score, (0.1, 0.5, 0.8)), strict=True
    ):
        _, false, _, true = confusion_matrix(positive, score >= t).ravel()
        assert found == pytest.approx(true / 50 - false / 50 * t / (1 - t))


def test_a_calibration_curve_has_every_unit_once(rng):
    score = rng.random(103)
    stated, true, counts = calibration_curve(rng.random(103) < score, score)
    assert counts.sum() == 103
    assert len(stated) == 5
    assert np.abs(stated - true).max() < 0.35


def test_a_rare_class_is_predicted_with_balanced_class_weights(rng):
    """One tile in ten is positive; without weights and threshold none is predicted positive."""
    patients = np.repeat(np.arange(60), 10)
    y = (np.arange(600) % 10 == 0).astype(np.int64)
    features = rng.normal(size=(600, 4)).astype(np.float32)
    features[:, 0] += 1.2 * y
    names = [f"p{i:02d}" for i in patients]
    table = pd.DataFrame({"patient_id": names, "slide_id": names, "tile": range(600), "site": ""})
    roles = ["train"] * 30 + ["val"] * 10 + ["test"] * 20
    ids = [f"p{i:02d}" for i in range(60)]
    folds = pd.DataFrame({"repeat": 0, "fold": 0, "patient_id": ids, "role": roles})
    tiles = Tiles(features, y, ("0", "1"), table)
    plain, _ = probe(tiles, folds, class_weight=None, decision_rule=DecisionRule(threshold=0.5))
    weighted, _ = probe(tiles, folds)
    accuracy = {}
    for name, rows in (("plain", plain), ("weighted", weighted)):
        truth, positive = rows["y"] == "1", rows["p_1"] >= rows["threshold"]
        accuracy[name] = balanced_accuracy_score(truth, positive)
    assert accuracy["plain"] < 0.6 < accuracy["weighted"]
    assert (weighted["p_1"] >= weighted["threshold_rule_out"])[weighted["y"] == "1"].mean() > 0.8
