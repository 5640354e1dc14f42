"""Training of a head: signal, shuffled labels, seeds, early stopping, and class weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from stainssl.errors import StainsslError
from stainssl.evaluation.evaluate import evaluate
from stainssl.mil.heads import HEADS
from stainssl.mil.predict import predict_bag, prediction_table
from stainssl.mil.targets import Classes, class_weights
from stainssl.mil.train import HeadSettings, fit

QUICK = HeadSettings(epochs=30, hidden=16, max_tiles=16, lr=5e-3)
NAMES = ("0", "1")
every_head = pytest.mark.parametrize("kind", sorted(HEADS))


def _settings(kind: str) -> HeadSettings:
    # TransMIL is slow: it processes bags one by one, each in many small operations.
    epochs = 6 if kind == "transmil" else QUICK.epochs
    return dataclasses.replace(QUICK, kind=kind, epochs=epochs)


def _out_of_fold(bags, kind, folds=4):
    scores = np.zeros(len(bags))
    for fold in range(folds):
        role = (np.arange(len(bags)) // 2 - fold) % folds
        train = [bag for bag, r in zip(bags, role, strict=True) if r > 1]
        val = [bag for bag, r in zip(bags, role, strict=True) if r == 1]
        model = fit(train, val, Classes(NAMES), _settings(kind), seed=fold)
        for i in np.flatnonzero(role == 0):
            scores[i] = predict_bag(model, bags[i])[0][1]
    return scores


@every_head
def test_a_signal_is_learned(kind, make_cohort):
    bags = make_cohort(48, shift=2.0)
    assert roc_auc_score([bag.label for bag in bags], _out_of_fold(bags, kind)) > 0.9


@every_head
def test_the_interval_with_shuffled_labels_contains_one_half(kind, make_cohort, rng):
    is_slow = kind == "transmil"  # see `_settings`
    bags = make_cohort(40 if is_slow else 80, shift=2.0)
    labels = rng.permutation([bag.label for bag in bags])
    bags = [dataclasses.replace(bag, label=int(y)) for bag, y in zip(bags, labels, strict=True)]
    scores = _out_of_fold(bags, kind, folds=3 if is_slow else 4)
    draws = []
    while len(draws) < 500:
        drawn = rng.integers(len(bags), size=len(bags))
        draws.append(roc_auc_score(labels[drawn], scores[drawn]))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert low <= 0.5 <= high


@every_head
def test_the_same_seed_gives_the_same_model_and_keeps_the_random_state_of_torch(kind, make_cohort):
    bags = make_cohort(12, shift=1.0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = fit(bags[:8], bags[8:], Classes(NAMES), _settings(kind), seed=3)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    second = fit(bags[:8], bags[8:], Classes(NAMES), _settings(kind), seed=3)
    other = fit(bags[:8], bags[8:], Classes(NAMES), _settings(kind), seed=4)
    predictions = [predict_bag(model, bags[0])[0] for model in (first, second, other)]
    np.testing.assert_array_equal(predictions[0], predictions[1])
    assert first.history == second.history
    assert (predictions[0] != predictions[2]).any()


def test_the_weights_of_the_lowest_validation_loss_are_kept(make_cohort):
    bags = make_cohort(16, shift=0.0)
    settings = dataclasses.replace(QUICK, patience=4, epochs=60)
    model = fit(bags[:10], bags[10:], Classes(NAMES), settings, seed=0)
    losses = [val for _, val in model.history]
    assert losses[model.epoch] == min(losses)
    assert len(losses) == model.epoch + settings.patience + 1 < settings.epochs


def test_without_validation_bags_every_epoch_runs_and_the_last_is_kept(make_cohort):
    model = fit(make_cohort(8, shift=1.0), [], Classes(NAMES), QUICK, seed=0)
    assert model.epoch == QUICK.epochs - 1 == len(model.history) - 1
    assert all(np.isnan(val) for _, val in model.history)


def test_a_head_can_be_trained_on_bags_of_one_tile(make_bag):
    bags = [make_bag(i, i % 2, n=1, shift=3.0) for i in range(9)]
    model = fit(bags[:6], bags[6:], Classes(NAMES), QUICK, seed=0)
    probability, attention = predict_bag(model, bags[0])
    assert np.isfinite(probability).all()
    assert attention.tolist() == [1.0]


def test_features_are_standardized_by_the_training_bags_only(make_cohort):
    bags = make_cohort(12, shift=1.0)
    model = fit(bags[:8], bags[8:], Classes(NAMES), QUICK, seed=0)
    everything = np.concatenate([block for bag in bags[:8] for block in bag.chunks(99)])
    np.testing.assert_allclose(model.mean, everything.mean(0), atol=1e-6)


def test_training_bags_of_one_class_are_refused(make_bag):
    bags = [make_bag(i, 1) for i in range(4)]
    with pytest.raises(StainsslError, match=r"4 of: 1\. .*stratify"):
        fit(bags, [], Classes(NAMES), QUICK, seed=0)


@pytest.mark.filterwarnings("error")
def test_folds_that_lack_a_class_cause_no_warnings(make_bag):
    bags = [make_bag(i, (0, 1, 0, 1, 2, 2)[i % 6], shift=2.0) for i in range(24)]
    target = Classes(("a", "b", "c"))
    parts = {name: [bag for bag in bags if bag.label in of] for name, of in
             {"train": (0, 1), "val": (0, 2), "test": (1, 2)}.items()}  # fmt: skip
    model = fit(parts["train"], parts["val"], target, QUICK, seed=0)
    predictions = np.stack([predict_bag(model, bag)[0] for bag in parts["test"]])
    rows = evaluate(prediction_table(parts["test"], predictions, target, 0, 0), "patient", 0)
    assert np.isfinite(rows["value"]).any()


def test_class_weights_are_inverse_to_class_counts(make_bag):
    bags = [make_bag(i, int(i == 0)) for i in range(4)]
    weights = class_weights(bags, 3)
    np.testing.assert_allclose(weights, [4 / 6, 4 / 2, 0.0])
    assert sum(weights[bag.label] for bag in bags) == pytest.approx(len(bags))


@pytest.mark.parametrize("kind", sorted(set(HEADS) - {"transmil"}))
def test_a_signal_of_three_classes_is_learned(kind, make_bag):
    bags = [make_bag(i, i % 3, shift=2.0) for i in range(24)]
    model = fit(bags[:18], bags[18:], Classes(("a", "b", "c")), _settings(kind), seed=0)
    predicted = [int(predict_bag(model, bag)[0].argmax()) for bag in bags[18:]]
    assert np.mean([g == bag.label for g, bag in zip(predicted, bags[18:], strict=True)]) > 0.8
