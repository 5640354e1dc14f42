"""Heads with several labels: codes, loss, training, predictions and refused input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn

from stainssl.errors import StainsslError
from stainssl.evaluation.multilabel import join_labels
from stainssl.evaluation.thresholds import DecisionRule
from stainssl.mil.predict import (
    load_model,
    predict_bag,
    predictions_of,
    save_model,
    with_thresholds,
)
from stainssl.mil.targets import Classes, MultiLabel
from stainssl.mil.train import HeadSettings, fit

TARGET = MultiLabel((("er", Classes(("neg", "pos"))), ("grade", Classes(("1", "2", "3")))))
SETTINGS = HeadSettings("mean", epochs=15, lr=5e-3, hidden=8)
CLASSES = st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 2)), min_size=1, max_size=12)


def _codes(classes: np.ndarray) -> torch.Tensor:
    words = [
        pd.Series([names[c] if c >= 0 else "" for c in column], dtype=object)
        for names, column in zip((("neg", "pos"), ("1", "2", "3")), classes.T, strict=True)
    ]
    return torch.tensor(TARGET.codes(join_labels(words)).to_numpy())


@given(CLASSES)
@settings(deadline=None)
def test_codes_encode_the_class_of_every_label(rows):
    classes = np.array(rows)
    np.testing.assert_array_equal(TARGET.classes(_codes(classes)).numpy(), classes)
    assert (_codes(classes).numpy() == TARGET.unknown).tolist() == (classes < 0).all(1).tolist()


@given(CLASSES, st.integers(0, 99))
@settings(deadline=None)
def test_the_loss_equals_torch_and_ignores_unknown_labels(rows, seed):
    classes = np.array(rows)
    outputs = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(rows), 5)))
    outputs = outputs.float().requires_grad_()
    found = TARGET.loss()(outputs, _codes(classes))
    whole = [
        nn.functional.cross_entropy(
            outputs[:, columns], torch.from_numpy(classes[:, i]), ignore_index=-1, reduction="none"
        )
        for i, columns in enumerate((slice(0, 2), slice(2, 5)))
    ]
    torch.testing.assert_close(found, (whole[0] + whole[1]) / 2)
    found.sum().backward()
    assert (outputs.grad[classes[:, 0] < 0, :2] == 0).all()
    assert (outputs.grad[classes[:, 1] < 0, 2:] == 0).all()


def _bags(make_bag, count: int, unknown: float = 0.3) -> list:
    """Bags with a signal per label in different features; some labels are unknown."""
    rng, bags = np.random.default_rng(2), []
    for i in range(count):
        er, grade = i % 2, rng.integers(3)
        bag = make_bag(i, 0)
        bag.tiles[0].features[:10, :4] += 1.2 * er
        bag.tiles[0].features[:10, 8:12] += 0.8 * grade
        known = np.where(rng.random(2) < unknown, -1, [er, grade])
        bags.append((dataclasses.replace(bag, label=_codes(known[None]).item()), er, grade))
    return bags


def test_one_model_with_two_labels_is_about_as_good_as_one_per_label(make_bag):
    made = _bags(make_bag, 120)
    bags, truth = [bag for bag, *_ in made], np.array([er for _, er, _ in made])
    train, val, test = bags[:60], bags[60:80], bags[80:]
    both = fit(train, val, TARGET, SETTINGS, 0)
    known = {
        part: next(iter(TARGET.label_tasks(some, {}, unknown=False))).bags
        for part, some in (("train", train), ("val", val))
    }
    alone = fit(known["train"], known["val"], Classes(("neg", "pos")), SETTINGS, 0)
    of_both, of_one = (
        roc_auc_score(truth[80:], [predict_bag(model, bag)[0][1] for bag in test])
        for model in (both, alone)
    )
    assert of_both > 0.85
    assert abs(of_both - of_one) < 0.1


def test_each_label_has_its_own_predictions_and_thresholds(make_bag, tmp_path):
    bags = [bag for bag, *_ in _bags(make_bag, 60)]
    model = with_thresholds(
        fit(bags[:40], bags[40:50], TARGET, SETTINGS, 0), bags[40:50], DecisionRule()
    )
    assert set(model.thresholds) == {
        "er/threshold",
        "er/threshold_rule_out",
    }  # grade has three classes
    save_model(model, tmp_path / "m")
    loaded, test = load_model(tmp_path / "m"), bags[50:]
    predicted = np.stack([predict_bag(loaded, bag)[0] for bag in test])
    np.testing.assert_allclose(predicted[:, :2].sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(predicted[:, 2:].sum(1), 1, atol=1e-5)
    known = TARGET.classes(torch.tensor([bag.label for bag in test])).numpy()
    tables = predictions_of(loaded, test, predicted, 0, 1)
    for place, (label, names) in enumerate(
        {"er": ("neg", "pos"), "grade": ("1", "2", "3")}.items()
    ):
        rows, of_label = tables[label], known[:, place]
        assert rows["y"].tolist() == [names[k] for k in of_label if k >= 0]
        assert [c for c in rows if c.startswith("p_")] == [f"p_{name}" for name in names]
    assert "threshold" in tables["er"]
    assert "threshold" not in tables["grade"]
    new = [dataclasses.replace(bag, label=TARGET.unknown) for bag in test]
    for table in predictions_of(loaded, new, predicted, 0, 1, unknown=True).values():
        assert len(table) == len(test)
        assert set(table["y"]) == {""}


def test_a_label_with_one_training_class_is_refused_by_name(make_bag):
    bags = [dataclasses.replace(make_bag(i, 0), label=_codes(np.array([[i % 2, 1]])).item())
            for i in range(8)]  # fmt: skip
    with pytest.raises(StainsslError, match="grade: a head needs training bags of at least two"):
        fit(bags, [], TARGET, SETTINGS, 0)


def test_unseen_classes_are_reported_by_label():
    words = join_labels([pd.Series(["pos", "equivocal"]), pd.Series(["1", ""])])
    assert TARGET.unseen_labels(words.tolist()).startswith("of 'er' classes without training data")
    assert TARGET.unseen_labels(words.tolist()[:1]) == ""
