"""Heads that learn a time to an event: what they find, their loss, and what they refuse."""

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
def followed(make_bag, rng):
    """Bags of an exponential hazard by which a third of their tiles is shifted."""
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
def test_a_head_learns_a_hazard(kind, followed):
    settings = dataclasses.replace(SETTINGS, kind=kind, epochs=8 if kind == "transmil" else 40)
    target = Hazards.of(_words(followed))
    model = fit(followed[:50], followed[50:60], target, settings, seed=0)
    assert _concordance(model, followed[60:]) > 0.65
    assert model.epoch == int(np.argmin([val for _, val in model.history]))


def test_batches_of_one_bag_have_the_same_losses(followed):
    target = Hazards.of(_words(followed)).fitted(followed[:40])
    outputs = torch.randn(len(followed), target.outputs)
    labels = torch.tensor([bag.label for bag in followed])
    each = [target.loss()(outputs[[i]], labels[[i]]) for i in range(len(followed))]
    torch.testing.assert_close(target.loss()(outputs, labels), torch.cat(each))


def test_the_loss_is_the_log_likelihood_of_intervals():
    target = Hazards((10.0,), ends=(2.0, 4.0, 10.0), base=(0.0, -1.0, 0.5))
    labels = torch.tensor([2.0, 3.0, 10.0, 12.0, -0.5, -1.0, -3.5, -10.0, 0.0, -0.0])
    outputs = torch.tensor([0.3, 0.2, -0.4]).repeat(len(labels), 1)
    h = torch.sigmoid(outputs[0] + torch.tensor(target.base))
    gone, stays = -torch.log(h), -torch.log(1 - h)
    expected = [
        gone[0], stays[0] + gone[1], stays[0] + stays[1] + gone[2], stays.sum(),
        torch.tensor(0.0), stays[0], stays[0] + stays[1], stays.sum(), gone[0], torch.tensor(0.0),
    ]  # fmt: skip
    torch.testing.assert_close(target.loss()(outputs, labels), torch.stack(expected))


def test_intervals_hold_as_many_training_events_and_each_event_one(followed):
    target = Hazards.of(_words(followed)).fitted(followed)
    labels = torch.tensor([bag.label for bag in followed])
    _, came = target.counts(labels)
    events = int((~torch.signbit(labels)).sum())
    assert target.outputs == min(events // EVENTS, INTERVALS)
    assert came.sum() == events
    assert came.sum(dim=0).max() - came.sum(dim=0).min() <= 1
    few = [bag for bag in followed if bag.label > 0][:4]
    assert Hazards.of(_words(few)).fitted(few).outputs == 1


def test_a_head_that_says_nothing_says_the_training_patients_survival(followed):
    uncensored = [dataclasses.replace(bag, label=abs(bag.label)) for bag in followed]
    target = Hazards.of(_words(uncensored)).fitted(uncensored)
    said = target.predict(torch.zeros(target.outputs))
    time = np.array([bag.label for bag in uncensored])
    at, survival = kaplan_meier_estimator(np.ones(len(time), bool), time)
    expected = [survival[np.searchsorted(at, t, side="right") - 1] for t in target.times]
    np.testing.assert_allclose(said[1:], expected, atol=0.04)
    assert said[0] == pytest.approx(np.mean(np.minimum(0, time - target.times[-1])) * -1, rel=0.05)


def test_answers_fall_with_time_and_rank_as_hazards_do(followed):
    target = Hazards.of(_words(followed)).fitted(followed)
    low, high = (target.predict(torch.full((target.outputs,), by)) for by in (-1.0, 1.0))
    for said in (low, high):
        assert (np.diff(said[1:]) <= 0).all()
        assert 0 <= said[0] <= target.times[-1]
    assert high[0] > low[0]
    assert (high[1:] < low[1:]).all()
    extreme = target.predict(torch.full((target.outputs,), 1e4))
    assert np.isfinite(extreme).all()


def test_units_of_time_change_nothing_but_the_unit(followed):
    quick = dataclasses.replace(SETTINGS, epochs=4)
    days = [dataclasses.replace(bag, label=bag.label * 32) for bag in followed]
    one, other = (
        fit(bags[:40], bags[40:], Hazards.of(_words(bags)), quick, seed=0)
        for bags in (followed, days)
    )
    a, b = (predict_bag(model, followed[0])[0] for model in (one, other))
    assert b[0] == pytest.approx(a[0] * 32, rel=2e-3)  # times are rounded to four digits
    np.testing.assert_allclose(b[1:], a[1:], atol=2e-3)


def test_a_saved_model_says_the_same_and_groups_are_parted_by_the_training_part(followed, tmp_path):
    target = Hazards.of(_words(followed))
    quick = dataclasses.replace(SETTINGS, epochs=2)
    model = fit(followed[:40], followed[40:50], target, quick, seed=0)
    model = with_thresholds(model, followed[40:50], DecisionRule(), followed[:40])
    risks = [predict_bag(model, bag)[0][0] for bag in followed[:50]]
    assert model.thresholds == {"threshold": pytest.approx(np.median(risks))}
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.target == model.target
    np.testing.assert_array_equal(
        predict_bag(again, followed[0])[0], predict_bag(model, followed[0])[0]
    )


def test_predictions_hold_risk_survival_and_the_follow_up(make_bag):
    target = Hazards((2.0, 12.5), (3.0, 20.0), (0.0, 0.0))
    labels = [3.5, -12.0, -0.0, 0.0, Hazards.unknown]
    bags = [dataclasses.replace(make_bag(i, 0), label=label) for i, label in enumerate(labels)]
    table = prediction_table(bags, np.tile([4.0, 0.9, 0.3], (5, 1)), target, 0, 1)
    assert list(table)[5:] == ["y", "risk", "s_2", "s_12.5"]
    assert table["y"].tolist() == ["3.5", "12+", "0+", "0", ""]
    assert table["s_12.5"].tolist() == pytest.approx([0.3] * 5)


def test_the_target_is_the_labels_and_codes_are_signed_times(followed):
    labels = SurvivalLabels("t and e", time="t", event="e")
    words = pd.Series(["5", "7.5+", "0+", "0", "30"])
    target = target_of(labels, words, is_balanced=True)
    codes = target.codes(words)
    assert codes.tolist() == [5, -7.5, 0, 0, 30]
    assert np.signbit(codes).tolist() == [False, True, True, False, False]
    assert target.unseen_labels(["77"]) == ""
    fitted = target.fitted(followed)
    assert target_from_dict(fitted.to_dict()) == fitted


def test_nothing_to_learn_and_clam_are_sentences(followed):
    with pytest.raises(StainsslError, match="no patient has an event after time 0"):
        Hazards.of(pd.Series(["3+", "0"]))
    censored = [dataclasses.replace(bag, label=-1.0) for bag in followed[:5]]
    with pytest.raises(StainsslError, match="training bag with an event but got 5 without"):
        fit(censored, [], Hazards((1.0,)), SETTINGS, seed=0)
    with pytest.raises(StainsslError, match="kind clam needs classes"):
        clam = dataclasses.replace(SETTINGS, kind="clam")
        fit(followed, [], Hazards.of(_words(followed)), clam, seed=0)
