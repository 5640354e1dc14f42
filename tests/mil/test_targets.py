"""Regression targets: training, loss, predictions, saved models and refused input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from stainssl.errors import StainsslError
from stainssl.evaluation.regression import RegressionLabels
from stainssl.evaluation.thresholds import DecisionRule
from stainssl.mil.heads import HEADS
from stainssl.mil.predict import (
    load_model,
    predict_bag,
    prediction_table,
    save_model,
    with_thresholds,
)
from stainssl.mil.targets import Classes, Number, target_of
from stainssl.mil.train import HeadSettings, fit

SETTINGS = HeadSettings(epochs=60, hidden=16, max_tiles=16, lr=5e-3)
every_head = pytest.mark.parametrize("kind", sorted(set(HEADS) - {"clam"}))


@pytest.fixture
def regression_bags(make_bag, rng):
    """Bags with the number 40 + 10 s, where s is the shift of a third of their tiles."""
    strength = rng.uniform(0, 4, 72)
    return [make_bag(i, 40 + 10 * s, n=21, shift=s / (40 + 10 * s)) for i, s in enumerate(strength)]


@every_head
def test_a_head_learns_a_number_in_the_unit_of_the_label(kind, regression_bags):
    settings = dataclasses.replace(SETTINGS, kind=kind, epochs=8 if kind == "transmil" else 60)
    model = fit(regression_bags[:44], regression_bags[44:54], Number(), settings, seed=0)
    predicted = np.array([predict_bag(model, bag)[0][0] for bag in regression_bags[54:]])
    true = np.array([bag.label for bag in regression_bags[54:]])
    mean = np.mean([bag.label for bag in regression_bags[:44]])
    assert spearmanr(predicted, true).statistic > 0.6
    assert np.abs(predicted - true).mean() < 0.8 * np.abs(mean - true).mean()
    assert model.epoch == int(np.argmin([val for _, val in model.history]))


def test_labels_are_standardised_with_the_training_bags(regression_bags):
    model = fit(regression_bags[:30], regression_bags[30:], Number(), SETTINGS, seed=0)
    labels = np.array([bag.label for bag in regression_bags[:30]])
    assert model.target == Number(pytest.approx(labels.mean()), pytest.approx(labels.std()))


def test_the_unit_of_the_label_only_scales_the_predictions(regression_bags):
    quick = dataclasses.replace(SETTINGS, epochs=5)
    scaled = [dataclasses.replace(bag, label=bag.label * 100 - 7) for bag in regression_bags]
    one = fit(regression_bags[:30], regression_bags[30:], Number(), quick, seed=0)
    other = fit(scaled[:30], scaled[30:], Number(), quick, seed=0)
    a, b = (predict_bag(model, regression_bags[0])[0][0] for model in (one, other))
    assert b == pytest.approx(a * 100 - 7, rel=1e-4)


def test_the_loss_is_hubers_in_standard_deviations():
    labels, outputs = torch.tensor([10.0, 20.0, 60.0]), torch.tensor([[0.1], [0.5], [0.0]])
    found = Number(20.0, 10.0).loss()(outputs, labels)
    expected = nn.HuberLoss(reduction="none")(outputs[:, 0], torch.tensor([-1.0, 0.0, 4.0]))
    torch.testing.assert_close(found, expected)


def test_a_saved_model_predicts_the_same(regression_bags, tmp_path):
    model = fit(regression_bags[:20], [], Number(), dataclasses.replace(SETTINGS, epochs=2), seed=0)
    save_model(with_thresholds(model, regression_bags[20:], DecisionRule()), tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.target == model.target
    assert loaded.thresholds == {}
    np.testing.assert_array_equal(
        predict_bag(loaded, regression_bags[0])[0], predict_bag(model, regression_bags[0])[0]
    )


def test_predictions_have_the_number_and_nan_for_an_unknown_label(make_bag):
    bags = [make_bag(1, 4.5), make_bag(2, Number.unknown)]
    table = prediction_table(bags, np.array([[4.0], [5.0]]), Number(), 0, 1)
    assert table["value"].tolist() == [4, 5]
    assert table["y"].iloc[0] == 4.5
    assert np.isnan(table["y"].iloc[1])
    assert not [c for c in table if c.startswith("p_")]


def test_equal_numbers_and_clam_are_refused(make_bag, regression_bags):
    with pytest.raises(StainsslError, match="different values but got 2 of: 3"):
        fit([make_bag(1, 3.0), make_bag(2, 3.0)], [], Number(), SETTINGS, seed=0)
    with pytest.raises(StainsslError, match="kind clam needs classes"):
        fit(regression_bags, [], Number(), dataclasses.replace(SETTINGS, kind="clam"), seed=0)


def test_the_target_of_a_regression_label_encodes_numbers():
    words = pd.Series(["2", "10", "2.5"])
    number = target_of(RegressionLabels("k"), words, is_balanced=True)
    assert isinstance(number, Number)
    assert number.codes(words).tolist() == [2, 10, 2.5]
    assert number.unseen_labels(["77"]) == ""
    assert "3; trained: 0, 1" in Classes(("0", "1")).unseen_labels(["0", "3"])
