"""Recalibration: against scikit-learn, and what it must not change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import _sigmoid_calibration

from stainssl.config import Task
from stainssl.evaluation.folds import make_folds
from stainssl.evaluation.metrics import METRICS, estimate
from stainssl.evaluation.predictions import FoldScores, ScoredUnits, read_scored
from stainssl.evaluation.probe import Tiles, probe
from stainssl.evaluation.recalibration import Recalibration, recalibration
from stainssl.evaluation.thresholds import DecisionRule, decision_rule_of
from stainssl.mil.predict import load_model, predict_bag, save_model, with_thresholds
from stainssl.mil.targets import Classes
from stainssl.mil.train import HeadSettings, fit


def _probabilities(logit: np.ndarray) -> np.ndarray:
    p = 1 / (1 + np.exp(-logit))
    return np.stack([1 - p, p], axis=1)


def _patients(n: int, seed: int, slope: float = 3.0, offset: float = 1.5):
    """Classes, and the probabilities of an overconfident (`slope`), biased (`offset`) model."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 1.5, n)
    y = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    return y, _probabilities(slope * logit + offset)


@pytest.mark.parametrize("n", [12, 40, 400])
def test_platt_scaling_equals_scikit_learn(n):
    y, p = _patients(n, n)
    found = recalibration("platt", y, p)
    logit = np.log(p[:, 1] / p[:, 0])
    minus_slope, minus_offset = _sigmoid_calibration(logit, y)
    assert found.slope == pytest.approx(-minus_slope, rel=0.02)
    assert found.offset == pytest.approx(-minus_offset, abs=0.02)


def test_the_slope_and_offset_of_the_model_are_recovered():
    y, p = _patients(4000, 1)
    found = recalibration("platt", y, p)
    assert found.slope == pytest.approx(1 / 3, rel=0.1)
    assert found.offset == pytest.approx(-0.5, abs=0.1)
    y, p = _patients(4000, 2, offset=0)
    assert recalibration("temperature", y, p).slope == pytest.approx(1 / 3, rel=0.1)


@pytest.mark.parametrize("how", ["platt", "temperature"])
def test_brier_score_and_calibration_error_of_other_patients_decrease(how):
    y, p = _patients(300, 3, offset=0)
    line = recalibration(how, y, p)
    y, p = _patients(1000, 4, offset=0)
    before, after = (
        ScoredUnits(y, each, np.arange(len(y)), ("0", "1")) for each in (p, line(p))
    )  # fmt: skip
    for metric, most in (("brier", 0.95), ("calibration_error", 0.5)):
        assert METRICS[metric].value(after) < most * METRICS[metric].value(before)


@given(st.integers(0, 500), st.sampled_from(["platt", "temperature"]), st.integers(8, 40))
@settings(deadline=None, max_examples=30)
def test_ranking_metrics_within_folds_and_the_interval_of_auroc_do_not_change(seed, how, n):
    rng = np.random.default_rng(seed)
    y, p = _patients(2 * n, seed)
    y[:4] = [0, 1, 0, 1]
    y[n : n + 4] = [0, 1, 0, 1]
    halves = np.arange(n), np.arange(n, 2 * n)
    lines = [recalibration(how, *_patients(12, int(rng.integers(999)))) for _ in halves]
    assert all(line.slope > 0 for line in lines)

    def scored(parts):
        folds = [FoldScores(0, unit, part) for unit, part in zip(halves, parts, strict=True)]
        return ScoredUnits(y, np.concatenate(parts), np.arange(2 * n), ("0", "1"), tuple(folds))

    before = scored([p[unit] for unit in halves])
    after = scored([line(p[unit]) for line, unit in zip(lines, halves, strict=True)])
    for metric in ("auroc", "auprc"):
        one, other = estimate(metric, before), estimate(metric, after)
        assert one.value == pytest.approx(other.value, abs=1e-12)
    assert estimate("auroc", before).interval == pytest.approx(estimate("auroc", after).interval)


@given(st.integers(0, 200), st.integers(2, 4))
@settings(deadline=None, max_examples=20)
def test_temperature_scaling_keeps_the_most_probable_class(seed, classes):
    rng = np.random.default_rng(seed)
    p, y = rng.dirichlet(np.ones(classes), 30), rng.integers(0, classes, 30)
    recalibrated = recalibration("temperature", y, p)(p)
    np.testing.assert_allclose(recalibrated.sum(axis=1), 1)
    np.testing.assert_array_equal(recalibrated.argmax(axis=1), p.argmax(axis=1))


def test_validation_patients_of_one_class_give_the_identity():
    p = _probabilities(np.linspace(-2, 2, 5))
    for y in (np.zeros(5, np.int64), np.zeros(0, np.int64)):
        line = recalibration("platt", y, p[: len(y)])
        assert line == Recalibration()
        assert line(p) is p


def test_a_head_is_recalibrated_on_its_validation_bags_and_saved_with_it(make_bag, tmp_path):
    bags = [make_bag(i, i % 2, shift=0.6) for i in range(60)]
    model = fit(
        bags[:30], bags[30:40], Classes(("n", "p")), HeadSettings("mean", epochs=40, lr=0.02), 0
    )
    plain, recalibrated = (
        with_thresholds(model, bags[30:40], DecisionRule(recalibrate=how))
        for how in ("none", "platt")
    )
    assert recalibrated.target.line != Recalibration()
    save_model(recalibrated, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    one, other = (
        np.array([predict_bag(m, bag)[0][1] for bag in bags[40:]]) for m in (plain, loaded)
    )
    np.testing.assert_array_equal(np.argsort(one), np.argsort(other))
    expected = recalibrated.target.line(np.stack([1 - one, one], axis=1))[:, 1]
    np.testing.assert_allclose(other, expected, atol=1e-4)
    validated = np.array([predict_bag(loaded, bag)[0][1] for bag in bags[30:40]])
    assert loaded.thresholds["threshold_rule_out"] in validated.astype(float)


def test_a_probe_is_recalibrated_on_its_validation_patients():
    rng = np.random.default_rng(0)
    names = np.repeat([f"p{i:02d}" for i in range(24)], 20)
    y = np.repeat(np.arange(24) % 2, 20)
    features = rng.normal(size=(480, 6)) + 0.7 * (y[:, None] * (np.arange(6) < 2))
    table = pd.DataFrame({"patient_id": names, "slide_id": names, "site": "a"})
    table["tile"] = np.arange(480)
    tiles = Tiles(features.astype(np.float32), y, ("n", "p"), table)
    patients = pd.DataFrame(
        {"patient_id": np.unique(names), "label": (np.arange(24) % 2).astype(str)}
    )
    folds = make_folds(patients, kind="cv", folds=3)
    plain, recalibrated = (
        read_scored(probe(tiles, folds, decision_rule=DecisionRule(recalibrate=how))[0], "tile")
        for how in ("none", "platt")
    )
    assert not np.allclose(plain.p, recalibrated.p)
    one, other = (METRICS["auroc"].value(scored) for scored in (plain, recalibrated))
    assert one == pytest.approx(other, abs=1e-12)


def test_the_key_recalibrate_is_refused_for_regression():
    given = {"level": "patient", "label": "er", "cohorts": ["c"], "recalibrate": "platt"}
    assert decision_rule_of(Task.model_validate(given)) == dataclasses.replace(
        DecisionRule(), recalibrate="platt"
    )
    with pytest.raises(ValueError, match="recalibrate: not for a task of kind regression"):
        Task.model_validate({**given, "kind": "regression"})
