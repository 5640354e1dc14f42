"""Ordinal tasks: cuts between classes, the predicted class, kappa and refused keys."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from stainssl.config import parse
from stainssl.errors import StainsslError
from stainssl.evaluation.compare import compare_two
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.kinds import labels_of
from stainssl.evaluation.metrics import METRICS, confidence_interval
from stainssl.evaluation.predictions import predicted_labels, read_scored
from stainssl.mil.head import weighted_loss
from stainssl.mil.targets import Ordered, target_from_dict, target_of

GRADES = {"low": ["1"], "middle": ["2"], "high": ["3"], "top": ["4"]}


def _task(**keys):
    task = {"level": "patient", "kind": "ordinal", "label": "g", "cohorts": ["c"]}
    return parse({
        "cohorts": {"c": {"sheet": "c.csv"}}, "tasks": {"t": task | {"classes": GRADES} | keys},
    }).tasks["t"]  # fmt: skip


def _predictions(rng, patients=60, noise=1.0, folds=1, units=1):
    y = np.repeat(rng.integers(0, 4, patients), units)
    latent = y + rng.normal(0, noise, len(y))
    p = np.exp(-((latent[:, None] - np.arange(4)) ** 2))
    p /= p.sum(axis=1, keepdims=True)
    patient = np.repeat(np.arange(patients), units)
    return pd.DataFrame({
        "patient_id": [f"p{i:03d}" for i in patient],
        "slide_id": [f"s{i}" if units > 1 else "" for i in range(len(y))], "site": "a",
        "repeat": 0, "fold": patient % folds, "y": np.array(list(GRADES), object)[y],
        **{f"p_{name}": p[:, k] for k, name in enumerate(GRADES)}, "grade": p @ np.arange(4),
    })  # fmt: skip


@pytest.mark.parametrize("units", [1, 2])
def test_kappa_and_cuts_equal_scikit_learn_also_under_resampling(rng, units):
    scored = read_scored(_predictions(rng, units=units), "slide" if units > 1 else "patient")

    def kappa(rows):
        return cohen_kappa_score(scored.y[rows], scored.predicted[rows], weights="quadratic")

    def auroc(rows, cut):
        return roc_auc_score(scored.y[rows] > cut, scored.p[rows, cut + 1 :].sum(axis=1))

    weights = rng.integers(0, 3, (4, scored.patients)).astype(float)
    for row, found, cut in zip(
        weights,
        METRICS["kappa"].resampled(scored, weights),
        METRICS["auroc_cut2"].resampled(scored, weights),
        strict=True,
    ):
        rows = np.repeat(np.arange(len(scored.y)), row[scored.patient].astype(int))
        assert found == pytest.approx(kappa(rows))
        assert cut == pytest.approx(auroc(rows, 1))
    every = np.arange(len(scored.y))
    mean = np.mean([auroc(every, cut) for cut in range(3)])
    assert METRICS["auroc_cuts"].value(scored) == pytest.approx(mean)


def test_the_median_class_is_predicted():
    table = pd.DataFrame(
        {"p_a": [0.4, 0.45, 0.1], "p_b": [0.25, 0.2, 0.1], "p_c": [0.35, 0.35, 0.8]}
    )
    assert predicted_labels(table.assign(grade=0.0)).tolist() == ["b", "b", "c"]
    assert predicted_labels(table).tolist() == ["a", "a", "c"]


def test_evaluate_gives_one_row_per_cut_with_its_interval(rng):
    rows = evaluate(_predictions(rng, folds=3), "patient", 0, resamples=300).set_index("metric")
    assert list(rows.index[:5]) == ["kappa", "auroc_cuts", "auroc_cut1", "auroc_cut2", "auroc_cut3"]
    assert "auroc" not in rows.index
    assert "auroc_cut4" not in rows.index
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()


def test_the_interval_of_kappa_has_nominal_coverage(rng):
    truth = METRICS["kappa"].value(read_scored(_predictions(rng, 20_000), "patient"))
    hits = []
    for _ in range(100):
        low, high = confidence_interval(
            "kappa", read_scored(_predictions(rng, 40), "patient"), resamples=300
        )
        hits.append(low <= truth <= high)
    assert np.mean(hits) > 0.87


@pytest.mark.parametrize("metric", ["kappa", "auroc_cuts"])
def test_comparison_finds_the_better_predictions(metric):
    good = _predictions(np.random.default_rng(1), noise=0.4)
    bad = _predictions(np.random.default_rng(1), noise=4.0)
    found = compare_two([good], [bad], "patient", metric=metric, resamples=300)
    assert found["difference"] > 0
    assert found["low"] > 0
    assert found["p"] < 0.05


def test_corn_multiplies_conditional_probabilities():
    target = Ordered(tuple(GRADES))
    outputs = torch.tensor([1.0, -0.5, 2.0])
    q = torch.sigmoid(outputs).numpy()
    above = np.cumprod(q)
    expected = [1 - above[0], above[0] - above[1], above[1] - above[2], above[2]]
    p = target.predict(outputs)
    np.testing.assert_allclose(p, expected, rtol=1e-5)
    assert p.sum() == pytest.approx(1)
    assert (p >= 0).all()
    # The loss of a bag over its cuts is the cross-entropy of its class.
    for label in range(4):
        loss = target.loss()(outputs[None], torch.tensor([label])) * 3
        own = weighted_loss(torch.log(torch.tensor(p))[None], torch.tensor([label]), torch.ones(4))
        torch.testing.assert_close(loss, own, rtol=1e-4, atol=1e-5)


def test_target_of_an_ordinal_label_can_be_saved_and_restored():
    words = pd.Series(["high", "low", "middle"])
    target = target_of(labels_of(_task()), words, is_balanced=True)
    assert isinstance(target, Ordered)
    assert target.names == ("low", "middle", "high")
    assert target_from_dict(target.to_dict()) == target
    assert target.outputs == 2
    found = target.prediction_columns(np.array([[0.2, 0.3, 0.5]]))
    assert found["grade"][0] == pytest.approx(1.3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"classes": {"a": [], "b": []}}, "at least three 'classes'"),
        ({"classes": {}}, "at least three 'classes'"),
        ({"threshold": 0.3}, "threshold: not for a task of kind ordinal"),
        ({"metrics": ["auroc"]}, "auroc is not for kind ordinal"),
        ({"level": "tile"}, "level slide or patient"),
    ],
)
def test_keys_that_ordinal_tasks_do_not_have_are_refused(keys, message):
    with pytest.raises(StainsslError, match=message):
        _task(**keys)


def test_kappa_is_the_default_metric_and_two_classes_are_a_problem():
    assert _task().metrics == ["kappa"]
    rows = pd.DataFrame({"slide_id": list("ab"), "patient_id": list("ab"), "g": ["1", "2"]})
    assert "three classes" in labels_of(_task()).problems(rows)[0]
    more = pd.DataFrame({"slide_id": list("abc"), "patient_id": list("abc"), "g": ["1", "2", "4"]})
    assert labels_of(_task()).problems(more) == []
