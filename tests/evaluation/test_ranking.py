"""Ranking metrics: within folds, weighted by pairs, averaged over repeats."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.metrics import METRICS, patient_weights
from stainssl.evaluation.predictions import ensemble, read_scored
from stainssl.evaluation.ranking import pairs_of
from stainssl.evaluation.roc import roc_band


def _table(rng, patients=24, folds=3, repeats=2, classes=2, level=0.0, signal=1.0):
    """Test predictions; `level` shifts the scores of each fold by a different amount."""
    words = rng.permutation(np.arange(patients) % classes)
    frames = []
    for repeat in range(repeats):
        fold = rng.permutation(np.arange(patients) % folds)
        logits = rng.normal(size=(patients, classes)) + signal * np.eye(classes)[words]
        logits[:, -1] += level * fold
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        ids = [f"p{i:02d}" for i in range(patients)]
        frame = pd.DataFrame(p, columns=[f"p_{k}" for k in range(classes)])
        frames.append(frame.assign(
            patient_id=ids, slide_id="", y=words.astype(str), repeat=repeat, fold=fold
        ))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def _by_hand(table, curve, k=1):
    """The metric by its definition, fold by fold."""
    repeats = []
    for _, rows in table.groupby("repeat"):
        values, pairs = [], []
        for _, fold in rows.groupby("fold"):
            positive = fold["y"] == str(k)
            if 0 < positive.sum() < len(fold):
                values.append(curve(positive, fold[f"p_{k}"]))
                pairs.append(positive.sum() * (~positive).sum())
        repeats.append(np.average(values, weights=pairs))
    return np.mean(repeats)


@pytest.mark.parametrize(
    ("name", "curve"), [("auroc", roc_auc_score), ("auprc", average_precision_score)]
)
@pytest.mark.parametrize("classes", [2, 3])
def test_metric_is_the_mean_over_folds_weighted_by_pairs_and_over_repeats(
    rng, name, curve, classes
):
    table = _table(rng, classes=classes, level=2.0)
    each = [_by_hand(table, curve, k) for k in ([1] if classes == 2 else range(3))]
    found = METRICS[name].value(read_scored(table, "patient"))
    assert found == pytest.approx(np.mean(each))


def test_a_perfect_order_in_every_fold_gives_one_for_any_fold_levels(rng):
    table = _table(rng, level=15.0, signal=6.0, repeats=1)
    value = evaluate(table, "patient", 0, resamples=20).set_index("metric")["value"]
    assert value["auroc"] == 1.0
    assert value["auroc_pooled"] < 0.9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-5, 5), fold=st.integers(0, 2))
def test_shifting_the_scores_of_one_fold_changes_no_metric(seed, shift, fold):
    table = _table(np.random.default_rng(seed))
    odds = np.log(table["p_1"] / table["p_0"]) + shift * (table["fold"] == fold)
    moved = table.assign(p_1=1 / (1 + np.exp(-odds)), p_0=1 / (1 + np.exp(odds)))
    for name in ("auroc", "auprc"):
        values = [METRICS[name].value(read_scored(t, "patient")) for t in (table, moved)]
        assert values[0] == pytest.approx(values[1])


def test_resampled_patients_are_weighted_by_how_often_they_are_drawn(rng):
    table = _table(rng)
    scored = read_scored(table, "patient")
    weights = patient_weights(scored, 4, seed=0)
    for row, found in zip(weights, METRICS["auroc"].resampled(scored, weights), strict=True):
        times = dict(zip(sorted(set(table["patient_id"])), row.astype(int), strict=True))
        drawn = table.loc[table.index.repeat(table["patient_id"].map(times))]
        assert found == pytest.approx(_by_hand(drawn, roc_auc_score))


def test_one_patient_per_fold_gives_nan_and_the_reason_is_logged(rng, caplog):
    table = _table(rng, repeats=1).assign(fold=range(24))
    rows = evaluate(table, "patient", 0, resamples=20).set_index("metric")
    assert rows.loc[["auroc", "auprc"], "value"].isna().all()
    assert np.isfinite(rows.loc["balanced_accuracy", "value"])
    assert "kind: cv" in caplog.text


def test_an_ensemble_is_ranked_as_one_model(rng):
    table = _table(rng, folds=1, repeats=4)
    mean = table.groupby("patient_id").agg(y=("y", "first"), p_1=("p_1", "mean"))
    found = METRICS["auroc"].value(read_scored(ensemble(table, "patient"), "patient"))
    assert found == pytest.approx(roc_auc_score(mean["y"] == "1", mean["p_1"]))


@pytest.mark.parametrize("repeats", [1, 3])
def test_pairs_have_the_value_sums_of_weights_and_influences(rng, repeats):
    scored = read_scored(_table(rng, repeats=repeats), "patient")
    pairs = pairs_of(scored, 1)
    assert pairs.value == pytest.approx(METRICS["auroc"].value(scored))
    step = 1e-6
    moved = 1 + step * np.eye(scored.patients)
    slopes = (METRICS["auroc"].resampled(scored, moved) - pairs.value) / step
    assert pairs.influence == pytest.approx(slopes, abs=1e-4)
    weights = np.zeros((scored.patients, scored.patients))
    for repeat in range(repeats):
        mine = [f for f in scored.folds if f.repeat == repeat]
        couples = [
            (i, j) for f in mine for i in f.unit for j in f.unit
            if scored.y[i] == 1 and scored.y[j] == 0
        ]  # fmt: skip
        for i, j in couples:
            weights[i, j] += 1 / (len(couples) * repeats)
    assert pairs.squares == pytest.approx((weights**2).sum())
    rows, columns = weights.sum(1), weights.sum(0)
    shared = (rows**2).sum() + (columns**2).sum() - 2 * (weights**2).sum()
    assert pairs.shared == pytest.approx(shared)


def test_the_area_under_the_averaged_curve_is_the_auroc_within_folds(rng):
    scored = read_scored(_table(rng, patients=60, level=2.0), "patient")
    curve = roc_band(scored, points=2001, resamples=50)
    area = np.trapezoid(curve["tpr"], curve["fpr"])
    assert area == pytest.approx(METRICS["auroc"].value(scored), abs=2e-3)
