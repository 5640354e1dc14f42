"""Discrete hazards: training, loss, predictions and refused input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines.utils import concordance_index
from sksurv.nonparametric import kaplan_meier_estimator

from stainssl.errors import StainsslError
from stainssl.evaluation.survival import SurvivalLabels
from stainssl.evaluation.thresholds import DecisionRule
from stainssl.mil.hazard import EVENTS, INTERVALS, Hazards
from stainssl.mil.heads import HEADS
from stainssl.mil.predict import (
    load_model,
    predict_bag,
    prediction_table,
    save_model,
    with_thresholds,
)
from stainssl.mil.targets import target_from_dict, target_of
from stainssl.mil.train import HeadSettings, fit

SETTINGS = HeadSettings(epochs=40, hidden=16, max_tiles=16, lr=5e-3)
every_head = pytest.mark.parametrize("kind", sorted(set(HEADS) - {"clam"}))


def _follow_ups(rng, hazard, censored=0.3):
    time = rng.exponential(30 * np.exp(-hazard))
    is_censored = rng.random(len(hazard)) < censored
    return np.where(is_censored, -time * rng.random(len(hazard)), time)


@pytest.fixture
def survival_bags(make_bag, rng):
    """Bags with exponential times; a third of their tiles is shifted by the log hazard."""
    hazard = rng.normal(size=90) * 1.5
    bags = []
    for i, (h, label) in enumerate(zip(hazard, _follow_ups(rng, hazard), strict=True)):
        bag = make_bag(i, 1, n=21, shift=2 * h)
        bags.append(dataclasses.replace(bag, label=float(label)))
    return bags


def _words(bags):
    return pd.Series(Hazards((1.0,)).true_values(bags))


def _concordance(model, bags):
    risk = np.array([predict_bag(model, bag)[0][0] for bag in bags])
    label = np.array([bag.label for bag in bags])
    return concordance_index(np.abs(label), -risk, ~np.signbit(label))


@every_head
def test_a_head_learns_a_hazard(kind, survival_bags):
    settings = dataclasses.replace(SETTINGS, kind=kind, epochs=8 if kind == "transmil" else 40)
    target = Hazards.of(_words(survival_bags))
    model = fit(survival_bags[:50], survival_bags[50:60], target, settings, seed=0)
    assert _concordance(model, survival_bags[60:]) > 0.65
    assert model.epoch == int(np.argmin([val for _, val in model.history]))


def test_batches_of_one_bag_have_the_same_losses(survival_bags):
    target = Hazards.of(_words(survival_bags)).fitted(survival_bags[:40])
    outputs = torch.randn(len(survival_bags), target.outputs)
    labels = torch.tensor([bag.label for bag in survival_bags])
    each = [target.loss()(outputs[[i]], labels[[i]]) for i in range(len(survival_bags))]
    torch.testing.assert_close(target.loss()(outputs, labels), torch.cat(each))


def test_the_loss_is_the_negative_log_likelihood_over_intervals():
    target = Hazards((10.0,), ends=(2.0, 4.0, 10.0), base=(0.0, -1.0, 0.5))
    labels = torch.tensor([2.0, 3.0, 10.0, 12.0, -0.5, -1.0, -3.5, -10.0, 0.0, -0.0])
    outputs = torch.tensor([0.3, 0.2, -0.4]).repeat(len(labels), 1)
    h = torch.sigmoid(outputs[0] + torch.tensor(target.base))
    event, no_event = -torch.log(h), -torch.log(1 - h)
    expected = [
        event[0], no_event[0] + event[1], no_event[0] + no_event[1] + event[2], no_event.sum(),
        torch.tensor(0.0), no_event[0], no_event[0] + no_event[1], no_event.sum(), event[0],
        torch.tensor(0.0),
    ]  # fmt: skip
    torch.testing.assert_close(target.loss()(outputs, labels), torch.stack(expected))


def test_intervals_have_equal_numbers_of_training_events(survival_bags):
    target = Hazards.of(_words(survival_bags)).fitted(survival_bags)
    labels = torch.tensor([bag.label for bag in survival_bags])
    _, event_counts = target.counts(labels)
    events = int((~torch.signbit(labels)).sum())
    assert target.outputs == min(events // EVENTS, INTERVALS)
    assert event_counts.sum() == events
    assert event_counts.sum(dim=0).max() - event_counts.sum(dim=0).min() <= 1
    few = [bag for bag in survival_bags if bag.label > 0][:4]
    assert Hazards.of(_words(few)).fitted(few).outputs == 1


def test_zero_outputs_predict_the_survival_of_the_training_patients(survival_bags):
    uncensored = [dataclasses.replace(bag, label=abs(bag.label)) for bag in survival_bags]
    target = Hazards.of(_words(uncensored)).fitted(uncensored)
    predicted = target.predict(torch.zeros(target.outputs))
    time = np.array([bag.label for bag in uncensored])
    at, survival = kaplan_meier_estimator(np.ones(len(time), bool), time)
    expected = [survival[np.searchsorted(at, t, side="right") - 1] for t in target.times]
    np.testing.assert_allclose(predicted[1:], expected, atol=0.04)
    assert predicted[0] == pytest.approx(
        np.mean(np.minimum(0, time - target.times[-1])) * -1, rel=0.05
    )


def test_predicted_survival_falls_with_time_and_with_the_hazard(survival_bags):
    target = Hazards.of(_words(survival_bags)).fitted(survival_bags)
    low, high = (target.predict(torch.full((target.outputs,), output)) for output in (-1.0, 1.0))
    for predicted in (low, high):
        assert (np.diff(predicted[1:]) <= 0).all()
        assert 0 <= predicted[0] <= target.times[-1]
    assert high[0] > low[0]
    assert (high[1:] < low[1:]).all()
    extreme = target.predict(torch.full((target.outputs,), 1e4))
    assert np.isfinite(extreme).all()


def test_the_unit_of_time_only_scales_the_predictions(survival_bags):
    quick = dataclasses.replace(SETTINGS, epochs=4)
    days = [dataclasses.replace(bag, label=bag.label * 32) for bag in survival_bags]
    one, other = (
        fit(bags[:40], bags[40:], Hazards.of(_words(bags)), quick, seed=0)
        for bags in (survival_bags, days)
    )
    a, b = (predict_bag(model, survival_bags[0])[0] for model in (one, other))
    assert b[0] == pytest.approx(a[0] * 32, rel=2e-3)  # times are rounded to four digits
    np.testing.assert_allclose(b[1:], a[1:], atol=2e-3)


def test_a_saved_model_predicts_the_same_and_its_threshold_is_the_median_risk(
    survival_bags, tmp_path
):
    target = Hazards.of(_words(survival_bags))
    quick = dataclasses.replace(SETTINGS, epochs=2)
    model = fit(survival_bags[:40], survival_bags[40:50], target, quick, seed=0)
    model = with_thresholds(model, survival_bags[40:50], DecisionRule(), survival_bags[:40])
    risks = [predict_bag(model, bag)[0][0] for bag in survival_bags[:50]]
    assert model.thresholds == {"threshold": pytest.approx(np.median(risks))}
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.target == model.target
    np.testing.assert_array_equal(
        predict_bag(loaded, survival_bags[0])[0], predict_bag(model, survival_bags[0])[0]
    )


def test_predictions_have_risk_survival_and_the_follow_up(make_bag):
    target = Hazards((2.0, 12.5), (3.0, 20.0), (0.0, 0.0))
    labels = [3.5, -12.0, -0.0, 0.0, Hazards.unknown]
    bags = [dataclasses.replace(make_bag(i, 0), label=label) for i, label in enumerate(labels)]
    table = prediction_table(bags, np.tile([4.0, 0.9, 0.3], (5, 1)), target, 0, 1)
    assert list(table)[5:] == ["y", "risk", "s_2", "s_12.5"]
    assert table["y"].tolist() == ["3.5", "12+", "0+", "0", ""]
    assert table["s_12.5"].tolist() == pytest.approx([0.3] * 5)


def test_the_target_of_a_survival_label_encodes_signed_times(survival_bags):
    labels = SurvivalLabels("t and e", time="t", event="e")
    words = pd.Series(["5", "7.5+", "0+", "0", "30"])
    target = target_of(labels, words, is_balanced=True)
    codes = target.codes(words)
    assert codes.tolist() == [5, -7.5, 0, 0, 30]
    assert np.signbit(codes).tolist() == [False, True, True, False, False]
    assert target.unseen_labels(["77"]) == ""
    fitted = target.fitted(survival_bags)
    assert target_from_dict(fitted.to_dict()) == fitted


def test_missing_events_and_clam_are_refused(survival_bags):
    with pytest.raises(StainsslError, match="no patient has an event after time 0"):
        Hazards.of(pd.Series(["3+", "0"]))
    censored = [dataclasses.replace(bag, label=-1.0) for bag in survival_bags[:5]]
    with pytest.raises(StainsslError, match="training bag with an event but got 5 without"):
        fit(censored, [], Hazards((1.0,)), SETTINGS, seed=0)
    with pytest.raises(StainsslError, match="kind clam needs classes"):
        clam = dataclasses.replace(SETTINGS, kind="clam")
        fit(survival_bags, [], Hazards.of(_words(survival_bags)), clam, seed=0)
