"""Metrics against scikit-learn, also under resampling; intervals; undefined values."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from stainssl.errors import StainsslError
from stainssl.evaluation.class_metrics import CLASS_METRICS, SHARES
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.folds import OF_TWO_CLASSES, RANKING
from stainssl.evaluation.metrics import METRICS, confidence_interval, metrics_of, patient_weights
from stainssl.evaluation.ordinal_metrics import ORDINAL_METRICS
from stainssl.evaluation.predictions import ScoredUnits, average_repeats, read_scored
from stainssl.evaluation.ranking import weighted_auprc, weighted_auroc
from stainssl.evaluation.regression_metrics import REGRESSION_METRICS
from stainssl.evaluation.roc import roc_band
from stainssl.evaluation.survival_metrics import SURVIVAL_METRICS


def _scored(
    rng: np.random.Generator, n: int = 200, patients: int = 20, classes: int = 2
) -> ScoredUnits:
    y = rng.integers(0, classes, n)
    p = rng.dirichlet(np.ones(classes), n) + 0.4 * np.eye(classes)[y]
    patient = np.r_[np.arange(patients), rng.integers(0, patients, n - patients)]
    names = tuple(map(str, range(classes)))
    return ScoredUnits(y, p / p.sum(1, keepdims=True), patient, names)


def _predictions(scored: ScoredUnits, **columns: object) -> pd.DataFrame:
    frame = pd.DataFrame(scored.p, columns=[f"p_{c}" for c in scored.classes])
    frame["y"] = scored.y.astype(float)
    frame["patient_id"] = [f"p{i}" for i in scored.patient]
    frame["slide_id"] = frame["patient_id"]
    return frame.assign(tile=range(len(frame)), repeat=0, fold=0, **columns)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(2, 40), levels=st.integers(1, 12))
def test_weighted_auroc_and_auprc_equal_scikit_learn_with_ties(data, n, levels):
    score = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, levels))).astype(float)
    positive = data.draw(hnp.arrays(bool, n))
    weights = data.draw(hnp.arrays(np.int64, (3, n), elements=st.integers(0, 3))).astype(float)
    each = np.arange(n)
    for weighted, plain in (
        (weighted_auroc, sk.roc_auc_score),
        (weighted_auprc, sk.average_precision_score),
    ):
        for row, found in zip(weights, weighted(positive, score, each, weights)[0], strict=True):
            kept = row > 0
            if len(np.unique(positive[kept])) < 2:
                assert np.isnan(found) or plain is sk.average_precision_score
            else:
                expected = plain(positive[kept], score[kept], sample_weight=row[kept])
                assert found == pytest.approx(expected, abs=1e-12)


def _one_vs_rest(curve, s):
    classes = [1] if len(s.classes) == 2 else s.present()
    return np.mean([curve(s.y == k, s.p[:, k]) for k in classes])


def _ruled_in(s):
    return (s.p[:, 1] >= s.rule_out).astype(int)


SCIKIT_LEARN = {
    "auroc": lambda s: _one_vs_rest(sk.roc_auc_score, s),
    "auprc": lambda s: _one_vs_rest(sk.average_precision_score, s),
    "accuracy": lambda s: sk.accuracy_score(s.y, s.predicted),
    "balanced_accuracy": lambda s: sk.balanced_accuracy_score(s.y, s.predicted),
    "f1_macro": lambda s: sk.f1_score(s.y, s.predicted, average="macro"),
    "f1_weighted": lambda s: sk.f1_score(s.y, s.predicted, average="weighted"),
    "sensitivity": lambda s: sk.recall_score(s.y, s.predicted),
    "specificity": lambda s: sk.recall_score(s.y, s.predicted, pos_label=0),
    "ppv": lambda s: sk.precision_score(s.y, s.predicted),
    "npv": lambda s: sk.precision_score(s.y, s.predicted, pos_label=0),
    "sensitivity_rule_out": lambda s: sk.recall_score(s.y, _ruled_in(s)),
    "specificity_rule_out": lambda s: sk.recall_score(s.y, _ruled_in(s), pos_label=0),
    "ppv_rule_out": lambda s: sk.precision_score(s.y, _ruled_in(s)),
    "npv_rule_out": lambda s: sk.precision_score(s.y, _ruled_in(s), pos_label=0),
    "brier": lambda s: sk.brier_score_loss(s.y, s.p[:, 1]),
}
SCIKIT_LEARN |= {f"{name}_pooled": SCIKIT_LEARN[name] for name in ("auroc", "auprc")}


def _with_cuts(scored: ScoredUnits) -> ScoredUnits:
    cuts = np.full((2, len(scored.y)), [[0.6], [0.3]])
    return dataclasses.replace(scored, threshold=cuts[0], rule_out=cuts[1])


@pytest.mark.parametrize("name", sorted(set(CLASS_METRICS) - {"calibration_error"}))
def test_metric_and_its_resamples_equal_scikit_learn(rng, name):
    scored = _with_cuts(_scored(rng))
    assert METRICS[name].value(scored) == pytest.approx(SCIKIT_LEARN[name](scored))
    weights = patient_weights(scored, 5, seed=1)
    for row, found in zip(weights, METRICS[name].resampled(scored, weights), strict=True):
        rows = np.repeat(np.arange(len(scored.y)), row[scored.patient].astype(int))
        cuts = (scored.threshold[rows], scored.rule_out[rows])
        repeated = ScoredUnits(
            scored.y[rows], scored.p[rows], scored.patient[rows], scored.classes, (), *cuts
        )
        assert found == pytest.approx(SCIKIT_LEARN[name](repeated))


@pytest.mark.parametrize(
    "name", ["auroc", "auprc", "accuracy", "balanced_accuracy", "f1_macro", "f1_weighted"]
)
def test_metric_of_three_classes_equals_scikit_learn(rng, name):
    scored = _scored(rng, classes=3)
    assert METRICS[name].value(scored) == pytest.approx(SCIKIT_LEARN[name](scored))


@pytest.mark.parametrize("name", CLASS_METRICS)
@pytest.mark.parametrize("units", [40, 200])
def test_every_value_lies_in_its_interval(rng, name, units):
    scored = _with_cuts(_scored(rng, n=units, patients=40))
    low, high = confidence_interval(name, scored, resamples=200)
    value = METRICS[name].value(scored)
    assert low - 1e-9 <= value <= high + 1e-9


@pytest.mark.parametrize("classes", [2, 3])
def test_calibration_error_equals_torchmetrics(rng, classes):
    scored = _scored(rng, classes=classes)
    if classes == 2:
        p, y = scored.p[:, 1], scored.y
        expected = binary_calibration_error(torch.tensor(p), torch.tensor(y), n_bins=10)
    else:
        expected = multiclass_calibration_error(
            torch.tensor(scored.p), torch.tensor(scored.y), num_classes=classes, n_bins=10
        )
    found = METRICS["calibration_error"].value(scored)
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_brier_score_and_calibration_error_are_computed_by_site():
    """Site b: probability 0.9 for all, half are positive; site a: certain and correct."""
    y = np.tile([0, 1], 30)
    site = np.repeat(["a", "b"], 30)
    p = np.where(site == "a", y, 0.9)
    scored = ScoredUnits(y, np.c_[1 - p, p], np.arange(60), ("0", "1"))
    found = evaluate(_predictions(scored, site=site), "patient", 0, resamples=50)
    value = found.set_index(["group", "metric"])["value"]
    assert value["site=a", "brier"] == value["site=a", "calibration_error"] == 0
    assert value["site=b", "brier"] == pytest.approx((0.81 + 0.01) / 2)
    assert value["site=b", "calibration_error"] == pytest.approx(0.4)
    assert value["all", "calibration_error"] == pytest.approx(0.2)


def test_resamples_keep_class_sizes_if_patients_have_a_single_class():
    y = np.array([0] * 12 + [1] * 5)
    scored = ScoredUnits(y, np.c_[1 - y, y].astype(float), np.arange(17), ("0", "1"))
    weights = patient_weights(scored, 50, seed=0)
    assert (weights[:, :12].sum(1) == 12).all()
    assert (weights[:, 12:].sum(1) == 5).all()


def _draw(rng: np.random.Generator, patients: int = 40, tiles: int = 6) -> ScoredUnits:
    # Tiles of a patient share a shift: intervals over tiles would be far too narrow.
    y = np.repeat(np.arange(patients) % 2, tiles)
    shift = np.repeat(rng.normal(size=patients), tiles)
    score = y + shift + 0.5 * rng.normal(size=len(y))
    p = 1 / (1 + np.exp(-score))
    return ScoredUnits(y, np.c_[1 - p, p], np.repeat(np.arange(patients), tiles), ("0", "1"))


def test_intervals_over_patients_have_nominal_coverage():
    rng = np.random.default_rng(5)
    truth = METRICS["auroc"].value(_draw(rng, patients=20_000, tiles=1))
    inside = 0
    for trial in range(200):
        low, high = confidence_interval("auroc", _draw(rng), resamples=300, seed=trial)
        inside += low <= truth <= high
    assert 0.89 <= inside / 200 <= 0.99


def test_interval_with_shuffled_labels_contains_one_half(rng):
    scored = _scored(rng, n=600, patients=30)
    shuffled = ScoredUnits(rng.permutation(scored.y), scored.p, scored.patient, scored.classes)
    low, high = confidence_interval("auroc", shuffled)
    assert low < 0.5 < high


def test_the_same_seed_gives_the_same_interval(rng):
    scored = _scored(rng)
    assert confidence_interval("auroc", scored, seed=3) == confidence_interval(
        "auroc", scored, seed=3
    )


def test_evaluate_gives_every_metric_over_all_and_by_site(rng):
    scored = _scored(rng)
    site = np.where(scored.patient % 2 == 0, "a", "b")
    rows = evaluate(_predictions(scored, site=site), "tile", 0, resamples=50)
    assert set(rows["group"]) == {"all", "site=a", "site=b"}
    assert list(rows.loc[rows["group"] == "all", "metric"]) == metrics_of(scored)
    absent = {m for m in METRICS if m.endswith("rule_out")}
    absent |= {*REGRESSION_METRICS, *ORDINAL_METRICS, *SURVIVAL_METRICS}
    assert set(METRICS) - set(rows["metric"]) == absent
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()
    assert rows.loc[rows["group"] == "site=a", "patients"].eq(10).all()


def test_probabilities_are_averaged_over_repeats(rng):
    scored = _scored(rng)
    one = _predictions(scored)
    two = one.assign(p_0=1 - one["p_1"] / 2, p_1=one["p_1"] / 2, repeat=1)
    units = average_repeats(pd.concat([one, two]), "tile")
    assert len(units) == len(one)
    both = units.set_index("tile")["p_1"]
    assert np.allclose(both.sort_index(), 0.75 * one.set_index("tile")["p_1"])


def test_a_group_with_one_class_gives_nan_and_the_reason_is_logged(rng, caplog):
    scored = _scored(rng)
    site = np.where(scored.y == 0, "a", "b")
    rows = evaluate(_predictions(scored, site=site), "tile", 0, resamples=20)
    at_a = rows[rows["group"] == "site=a"].set_index("metric")
    assert at_a.loc["auroc", ["value", "low", "high"]].isna().all()
    assert np.isfinite(at_a.loc["brier", "value"])
    assert "one class only" in caplog.text


def test_a_single_patient_gives_a_value_and_no_interval(rng):
    scored = _scored(rng, patients=1)
    rows = evaluate(_predictions(scored), "tile", 0).set_index("metric")
    assert np.isfinite(rows.loc["auroc", "value"])
    assert np.isnan(rows.loc["auroc", "low"])


def test_missing_probabilities_and_probability_columns_are_refused(rng):
    frame = _predictions(_scored(rng))
    with pytest.raises(StainsslError, match="'2'"):
        read_scored(frame.assign(y="2"), "tile")
    with pytest.raises(StainsslError, match="not finite"):
        read_scored(frame.assign(p_1=np.nan), "tile")
    with pytest.raises(StainsslError, match="p_<class>"):
        average_repeats(frame.drop(columns="p_0"), "tile")


def test_the_area_of_the_roc_curve_is_the_auroc_and_the_curve_lies_in_its_band(rng):
    scored = _scored(rng, n=2000)
    curve = roc_band(scored, points=501, resamples=100)
    area = np.trapezoid(curve["tpr"], curve["fpr"])
    assert area == pytest.approx(METRICS["auroc"].value(scored), abs=5e-3)
    inner = curve.iloc[5:-5]
    assert ((inner["low"] <= inner["tpr"] + 0.02) & (inner["tpr"] <= inner["high"] + 0.02)).all()


@pytest.mark.filterwarnings("error")
def test_the_roc_curve_leaves_out_resamples_without_a_class(rng):
    patient = np.repeat(np.arange(3), 20)
    y = np.where(patient == 0, np.arange(60) % 2, 0)  # only the first patient has positives
    p = np.clip(0.4 + 0.2 * y + rng.normal(0, 0.2, 60), 0, 1)
    curve = roc_band(ScoredUnits(y, np.stack([1 - p, p], 1), patient, ("0", "1")), resamples=50)
    assert np.isfinite(curve).all(axis=None)
    assert (np.diff(curve["tpr"]) >= 0).all()


def test_folds_lists_the_ranking_metrics_and_the_metrics_of_two_classes():
    assert {name for name, metric in METRICS.items() if metric.ranks} == set(RANKING)
    assert set(SHARES) == set(OF_TWO_CLASSES)


def test_limits_lie_within_the_bounds_of_the_metric():
    rng = np.random.default_rng(5)
    rows = []
    for repeat in range(2):
        for place in range(16):
            y, fold = place % 2, place // 4
            p = float(np.clip(0.5 + 0.35 * (2 * y - 1) + rng.normal(0, 0.25), 0.01, 0.99))
            rows.append((f"p{place}", "", "a", repeat, fold, str(y), 1 - p, p))
    columns = ["patient_id", "slide_id", "site", "repeat", "fold", "y", "p_0", "p_1"]
    found = evaluate(pd.DataFrame(rows, columns=columns), "patient", 0)
    bounded = found[found["metric"].map(lambda name: METRICS[name].bounds == (0.0, 1.0))]
    assert len(bounded)
    assert bounded["low"].dropna().ge(0).all()
    assert bounded["high"].dropna().le(1).all()
