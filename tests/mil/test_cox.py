"""Cox's partial likelihood: loss and survival against other packages, and training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import CoxPHFitter
from sksurv.linear_model import CoxPHSurvivalAnalysis

from stainssl.config import Task
from stainssl.errors import StainsslError
from stainssl.evaluation.thresholds import DecisionRule
from stainssl.mil import heads
from stainssl.mil.adamw import AdamW
from stainssl.mil.bags import statistics
from stainssl.mil.cox import Cox, partial_likelihood
from stainssl.mil.hazard import Hazards
from stainssl.mil.predict import load_model, predict_bag, save_model, with_thresholds
from stainssl.mil.targets import target_of
from stainssl.mil.train import HeadSettings, _Loop, fit
from tests.mil.test_hazard import _concordance, _words, survival_bags  # noqa: F401

SETTINGS = HeadSettings("mean", epochs=40, lr=1e-2, max_tiles=16)


def _table(seed: int, n: int = 40, levels: int = 12) -> pd.DataFrame:
    """Times with ties, a third of them censored, and a covariate of the hazard."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    time = np.ceil(rng.exponential(levels * np.exp(-x)) + 0.01).clip(max=3 * levels)
    return pd.DataFrame({"x": x, "time": time, "event": rng.random(n) < 0.7})


def _labels(table: pd.DataFrame) -> torch.Tensor:
    time = table["time"].to_numpy()
    return torch.tensor(np.where(table["event"], time, -time))


@given(st.integers(0, 200))
@settings(deadline=None, max_examples=15)
def test_the_loss_equals_the_likelihood_of_lifelines_with_efrons_ties(seed):
    table = _table(seed)
    model = CoxPHFitter().fit(table, "time", "event")
    risk = torch.tensor(model.params_["x"] * table["x"].to_numpy())[:, None]
    found = partial_likelihood(risk, _labels(table))
    assert -found.sum().item() == pytest.approx(model.log_likelihood_, rel=1e-4)
    assert (found[~table["event"].to_numpy()] == 0).all()


@given(st.integers(0, 200))
@settings(deadline=None, max_examples=10)
def test_the_minimum_of_the_loss_equals_scikit_survival(seed):
    table = _table(seed)
    y = np.array(
        list(zip(table["event"], table["time"], strict=True)), dtype=[("e", bool), ("t", float)]
    )
    known = CoxPHSurvivalAnalysis(ties="efron").fit(table[["x"]], y).coef_[0]
    beta = torch.tensor(known, requires_grad=True)
    risk = beta * torch.tensor(table["x"].to_numpy())[:, None]
    partial_likelihood(risk, _labels(table)).sum().backward()
    assert abs(beta.grad.item()) < 1e-2


@given(st.integers(0, 200), st.floats(-20, 20))
@settings(deadline=None, max_examples=15)
def test_a_constant_added_to_all_risks_does_not_change_the_loss(seed, level):
    table, rng = _table(seed), np.random.default_rng(seed)
    risk = torch.tensor(rng.normal(size=(len(table), 1)))
    one, other = (partial_likelihood(r, _labels(table)) for r in (risk, risk + level))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_gradients_are_finite_with_ties():
    labels = torch.tensor([3.0, 3.0, 3.0, -3.0, -3.0, 0.0, -0.0])
    risk = torch.zeros(7, 1, requires_grad=True)
    partial_likelihood(risk, labels).sum().backward()
    assert torch.isfinite(risk.grad).all()


def test_survival_equals_breslows_estimate_of_scikit_survival():
    table = _table(5, n=80)
    y = np.array(
        list(zip(table["event"], table["time"], strict=True)), dtype=[("e", bool), ("t", float)]
    )
    model = CoxPHSurvivalAnalysis(ties="breslow").fit(table[["x"]], y)
    risk = (table["x"].to_numpy() * model.coef_[0]).astype(np.float32)
    target = Cox((2.0, 5.0, 9.0)).with_baseline(_labels(table).tolist(), risk[:, None])
    for i in (0, 7, 30):
        expected = model.predict_survival_function(table[["x"]].iloc[[i]])[0](np.array([2, 5, 9]))
        predicted = target.predict(torch.tensor([risk[i]]))
        np.testing.assert_allclose(predicted[1:], expected, rtol=1e-3)


def test_a_higher_hazard_gives_a_higher_risk_and_lower_survival():
    target = Cox((2.0, 9.0)).with_baseline([1.0, 2.0, -3.0, 8.0], np.zeros((4, 1)))
    low, high = (target.predict(torch.tensor([r])) for r in (-1.0, 1.0))
    assert high[0] > low[0]
    assert (high[1:] < low[1:]).all()


def test_a_joint_step_has_the_gradient_of_the_loss_of_all_bags(survival_bags):  # noqa: F811
    train = survival_bags[:30]
    mean, std = statistics(train)
    head = heads.create("abmil", train[0].dim, 1, 8, 0.0)
    initial = {k: v.clone() for k, v in head.state_dict().items()}

    class RecordingAdamW(AdamW):
        def step(self) -> None:
            self.kept = [p.grad.clone() for p in head.parameters()]

    loop = _Loop(head, SETTINGS, mean, std, partial_likelihood, np.random.default_rng(0), True)
    optimizer = RecordingAdamW(head.parameters(), 0.1, 0.0)
    memory = torch.empty(8 * 30 * train[0].dim)
    loop._joint_epoch(train, optimizer, memory, [])
    head.load_state_dict(initial)
    head.zero_grad()
    repeated = dataclasses.replace(loop, rng=np.random.default_rng(0))
    outputs = torch.cat([head(x.clone(), m) for x, m, _ in repeated._batches(train, memory)])
    partial_likelihood(outputs, torch.tensor([bag.label for bag in train])).mean().backward()
    for found, expected in zip(optimizer.kept, head.parameters(), strict=True):
        torch.testing.assert_close(found, expected.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mean", "abmil", "dsmil"])
def test_a_head_learns_about_as_well_as_with_discrete_hazards(kind, survival_bags):  # noqa: F811
    settings = dataclasses.replace(SETTINGS, kind=kind, hidden=16)
    cox = fit(survival_bags[:50], survival_bags[50:60], Cox.of(_words(survival_bags)), settings, 0)
    cox = with_thresholds(cox, survival_bags[50:60], DecisionRule(), survival_bags[:50])
    discrete = fit(
        survival_bags[:50], survival_bags[50:60], Hazards.of(_words(survival_bags)), settings, 0
    )
    assert _concordance(cox, survival_bags[60:]) > 0.65
    assert _concordance(cox, survival_bags[60:]) > _concordance(discrete, survival_bags[60:]) - 0.1
    assert np.isfinite([val for _, val in cox.history]).all()


def test_early_stopping_works_with_validation_bags_without_events(survival_bags):  # noqa: F811
    val = [dataclasses.replace(bag, label=-abs(bag.label)) for bag in survival_bags[50:54]]
    model = fit(survival_bags[:50], val, Cox.of(_words(survival_bags)), SETTINGS, 0)
    losses = [val for _, val in model.history]
    assert len(set(losses)) == len(losses)
    assert model.epoch == int(np.argmin(losses))


def test_a_saved_model_predicts_the_same(survival_bags, tmp_path):  # noqa: F811
    model = fit(
        survival_bags[:40],
        [],
        Cox.of(_words(survival_bags)),
        dataclasses.replace(SETTINGS, epochs=4),
        0,
    )
    model = with_thresholds(model, [], DecisionRule(), survival_bags[:40])
    save_model(model, tmp_path / "m")
    for bag in survival_bags[40:43]:
        one, other = (predict_bag(m, bag)[0] for m in (model, load_model(tmp_path / "m")))
        np.testing.assert_array_equal(one, other)
        assert (np.diff(one[1:]) <= 0).all()


def test_training_bags_without_a_comparable_pair_are_refused(make_bag):
    bags = [
        dataclasses.replace(make_bag(i, 0), label=label)
        for i, label in enumerate([-1.0, -2.0, 3.0])
    ]
    with pytest.raises(StainsslError, match="needs a comparable pair"):
        fit(bags, [], Cox((3.0,)), SETTINGS, 0)


def test_the_key_hazard_needs_kind_survival_and_selects_the_target():
    given = {"level": "patient", "kind": "survival", "time": "t", "event": "e", "cohorts": ["c"]}
    assert Task.model_validate({**given, "hazard": "cox"}).hazard == "cox"
    with pytest.raises(ValueError, match="hazard: cox needs kind survival"):
        Task.model_validate({"level": "slide", "label": "x", "cohorts": ["c"], "hazard": "cox"})
    words = pd.Series(["3", "5+", "7"])
    assert isinstance(target_of(None, words, False, "cox"), Cox)
