"""Survival metrics: against lifelines and scikit-survival, and their invariances."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lifelines.utils import concordance_index
from sksurv.metrics import (
    brier_score,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from stainssl.evaluation.compare import compare_all, compare_two
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.follow_up import follow_up_word, horizons_of, time_lost
from stainssl.evaluation.metrics import METRICS, confidence_interval, estimate
from stainssl.evaluation.predictions import SurvivalUnits, ensemble, predicted_labels, read_scored
from stainssl.evaluation.survival_metrics import (
    SURVIVAL_METRICS,
    auroc_by_time,
    brier_by_time,
    censoring_kaplan_meier,
    pair_sums,
)

RANKING = ["c_index", "c_index_uno", "auroc_time"]


def _predictions(
    rng, patients=60, folds=1, repeats=1, units=1, strength=1.0, level=0.0, noise=0.5, censor=40
):
    """Exponential hazards, predicted with noise; the risks of each fold have a different level."""
    hazard = rng.normal(size=patients)
    time = np.round(rng.exponential(20 * np.exp(-strength * hazard)), 6)
    end = np.round(rng.exponential(censor, patients), 6) if censor else time
    word = [follow_up_word(min(t, c), t <= c) for t, c in zip(time, end, strict=True)]
    times = horizons_of(word)
    rows = []
    for repeat in range(repeats):
        fold = rng.permutation(patients) % folds
        for p in range(patients):
            for u in range(units):
                predicted = hazard[p] + rng.normal() * noise
                curve = np.exp(-np.array(times) / 20 * np.exp(predicted))
                rows.append({
                    "patient_id": f"p{p:03d}", "slide_id": f"s{p:03d}-{u}" if units > 1 else "",
                    "site": "ab"[p % 2], "repeat": repeat, "fold": int(fold[p]), "y": word[p],
                    "risk": predicted + level * fold[p],
                    **{f"s_{t:g}": s for t, s in zip(times, curve, strict=True)},
                })  # fmt: skip
    return pd.DataFrame(rows)


def _truth(scored: SurvivalUnits):
    return Surv.from_arrays(scored.event, scored.y)


def _value(metric, scored):
    return METRICS[metric].value(scored)


# --- against the libraries -----------------------------------------------------------------------

_few = st.integers(0, 6).map(float)  # so that times and risks tie


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(2, 25))
def test_harrells_c_equals_lifelines_with_ties_and_censoring(data, n):
    time = data.draw(hnp.arrays(float, n, elements=_few))
    risk = data.draw(hnp.arrays(float, n, elements=_few))
    event = data.draw(hnp.arrays(bool, n))
    times = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    weights = np.array([np.ones(n), times], float)
    right, pairs = pair_sums(time, event, risk, weights)
    for row, (top, bottom) in enumerate(zip(right, pairs, strict=True)):
        many = np.repeat(np.arange(n), weights[row].astype(int))
        try:
            expected = concordance_index(time[many], -risk[many], event[many])
        except ZeroDivisionError:
            assert bottom == 0
        else:
            assert top / bottom == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=80)
@given(st.data(), st.integers(2, 25))
def test_the_censoring_curve_equals_the_kaplan_meier_estimate(data, n):
    time = data.draw(hnp.arrays(float, n, elements=_few))
    event = data.draw(hnp.arrays(bool, n))
    found = censoring_kaplan_meier(time, event, np.ones((1, n)))
    at, share = kaplan_meier_estimator(event, time, reverse=True)
    np.testing.assert_array_equal(found.at, at)
    np.testing.assert_allclose(found.share[0], share, atol=1e-12)
    np.testing.assert_allclose(found.beyond(at)[0], share, atol=1e-12)
    np.testing.assert_allclose(found.until(at)[0], np.r_[1, share[:-1]], atol=1e-12)


def _tied(scored: SurvivalUnits) -> SurvivalUnits:
    """Round event times and risks to integers and censoring times to halves, which makes ties."""
    time = np.floor(scored.y) + np.where(scored.event, 1.0, 0.5)
    p = np.c_[np.round(scored.p[:, 0]), scored.p[:, 1:]]
    return dataclasses.replace(scored, y=time, p=p, folds=())


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_unos_c_auroc_and_brier_score_equal_scikit_survival(seed, is_tied):
    scored = read_scored(_predictions(np.random.default_rng(seed)), "patient")
    assert isinstance(scored, SurvivalUnits)
    scored = _tied(scored) if is_tied else scored
    truth, times, ones = _truth(scored), np.array(scored.times), np.ones((1, scored.patients))
    risk, curves = scored.p[:, 0], scored.p[:, 1:]
    assert 0.2 < scored.event.mean() < 0.95
    expected = concordance_index_ipcw(truth, truth, risk, tau=times[-1])[0]
    assert _value("c_index_uno", scored) == pytest.approx(expected)
    auroc = cumulative_dynamic_auc(truth, truth, risk, times)[0]
    np.testing.assert_allclose(auroc_by_time(scored, ones)[:, 0], auroc)
    assert _value("auroc_time", scored) == pytest.approx(np.nanmean(auroc))
    np.testing.assert_allclose(
        brier_by_time(scored, ones)[:, 0], brier_score(truth, truth, curves, times)[1]
    )
    integrated = integrated_brier_score(truth, truth, curves, times)
    assert _value("integrated_brier", scored) == pytest.approx(integrated)
    assert _value("c_index", scored) == pytest.approx(
        concordance_index(scored.y, -risk, scored.event)
    )
    assert _value("events", scored) == scored.event.mean()


@pytest.mark.parametrize("metric", list(SURVIVAL_METRICS))
def test_patient_weights_equal_copies_of_patients(metric, rng):
    scored = read_scored(_predictions(rng, 40), "patient")
    weights = rng.integers(0, 4, (5, 40)).astype(float)
    found = METRICS[metric].resampled(scored, weights)
    for row, value in zip(weights.astype(int), found, strict=True):
        many = np.repeat(np.arange(40), row)
        copied = dataclasses.replace(
            scored, y=scored.y[many], event=scored.event[many], p=scored.p[many], folds=(),
            patient=np.arange(len(many)),
        )  # fmt: skip
        assert value == pytest.approx(METRICS[metric].value(copied))


# --- properties ----------------------------------------------------------------------------------


def test_c_of_a_known_hazard_is_not_biased_by_folds_or_censoring(rng):
    """Of two exponential times that of hazard h comes first with probability h / (h + g)."""
    hazard = rng.normal(size=4000)
    one, other = np.exp(hazard[::2]), np.exp(hazard[1::2])
    expected = np.mean(np.maximum(one, other) / (one + other))
    whole, cut = [], []
    for _ in range(60):
        table = _predictions(rng, 60, folds=4, level=100, noise=0.0, censor=None)
        whole.append(_value("c_index", read_scored(table, "patient")))
        table = _predictions(rng, 60, folds=4, level=100, noise=0.0, censor=15)
        cut.append(_value("c_index_uno", read_scored(table, "patient")))
    assert np.mean(whole) == pytest.approx(expected, abs=0.015)
    assert np.mean(cut) == pytest.approx(expected, abs=0.03)


def test_fold_levels_do_not_change_ranking_metrics(rng):
    table = _predictions(rng, folds=4, repeats=2)
    moved = table.assign(risk=table["risk"] + 50 * table["fold"] - 7 * table["repeat"])
    for metric in RANKING:
        one, other = (_value(metric, read_scored(t, "patient")) for t in (table, moved))
        assert other == pytest.approx(one)
    assert _value("c_index", read_scored(moved, "patient").pooled()) < 0.7


def test_a_constant_risk_gives_one_half_and_a_perfect_order_one(rng):
    table = _predictions(rng, folds=3)
    same = read_scored(table.assign(risk=1.0), "patient")
    for metric in RANKING:
        assert _value(metric, same) == 0.5
    scored = read_scored(table, "patient")
    exact = read_scored(table.assign(risk=-_of_units(scored, table)), "patient")
    assert [_value(metric, exact) for metric in RANKING] == pytest.approx([1, 1, 1])
    low, high = confidence_interval("c_index", exact)
    assert low < 0.99
    assert high == pytest.approx(1)


def _of_units(scored, table):
    return pd.Series(scored.y, sorted(table["patient_id"])).loc[table["patient_id"]].to_numpy()


def test_slides_of_one_patient_form_no_pairs(rng):
    one = _predictions(rng, 30)
    twice = pd.concat([one.assign(slide_id=one["patient_id"] + s) for s in "ab"])
    scored = read_scored(twice, "slide")
    assert scored.patients == 30
    assert len(scored.y) == 60
    assert _value("c_index", scored) == pytest.approx(
        _value("c_index", read_scored(one, "patient"))
    )
    low, high = confidence_interval("c_index", scored)
    assert low < _value("c_index", scored) < high


def test_evaluate_gives_every_metric_with_its_interval_over_all_and_by_site(rng):
    found = evaluate(_predictions(rng, 60, folds=3, repeats=2), "patient", 0)
    assert set(found["group"]) == {"all", "site=a", "site=b"}
    whole = found[found["group"] == "all"].set_index("metric")
    assert list(whole.index) == list(SURVIVAL_METRICS)
    assert ((whole["low"] < whole["value"]) & (whole["value"] < whole["high"])).all()
    assert whole.loc["c_index", "value"] > 0.6
    assert whole["patients"].eq(60).all()


def test_undefined_metrics_are_nan_and_the_reason_is_logged(rng, caplog):
    table = _predictions(rng, 20)
    censored = table.assign(y=table["y"].str.rstrip("+") + "+")
    found = evaluate(censored, "patient", 0).query("group == 'all'").set_index("metric")
    assert found.loc[RANKING, "value"].isna().all()
    assert "nobody has the event" in caplog.text
    assert found.loc["events", "value"] == 0
    alone = table.assign(fold=range(20))
    found = evaluate(alone, "patient", 0).query("group == 'all'").set_index("metric")
    assert found.loc[RANKING, "value"].isna().all()
    assert "use folds" in caplog.text
    assert np.isfinite(found.loc["integrated_brier", "value"])


def test_intervals_without_signal_contain_one_half(rng):
    held = 0
    for _ in range(40):
        table = _predictions(rng, 40, folds=4, strength=0.0)
        low, high = confidence_interval("c_index", read_scored(table, "patient"), resamples=300)
        held += low <= 0.5 <= high
    assert held >= 34


def test_comparison_finds_the_better_predictions_and_no_difference_to_the_same(rng):
    table = _predictions(rng, 80, folds=2, strength=2.0)
    noise = table.assign(risk=rng.normal(size=80))
    found = compare_two([table], [noise], "patient", metric="c_index")
    assert found["difference"] > 0.1
    assert found["low"] > 0
    assert found["p"] < 0.05
    same = compare_two([table], [table], "patient", metric="integrated_brier")
    assert same["difference"] == 0
    assert same["p"] == 1
    every = compare_all({"a": [table], "b": [noise], "c": [table]}, "patient", metric="c_index_uno")
    assert len(every) == 3
    assert np.isfinite(every["p"]).all()


def test_an_ensemble_is_evaluated_as_one_model_and_groups_follow_the_threshold(rng):
    table = _predictions(rng, 30, repeats=3).assign(threshold=0.2)
    one = ensemble(table, "patient")
    scored = read_scored(one, "patient")
    assert len(scored.ranked) == 1
    assert estimate("c_index", scored).value > 0.5
    np.testing.assert_array_equal(scored.is_high, scored.p[:, 0] >= 0.2)
    assert predicted_labels(one).tolist() == np.where(scored.is_high, "high", "low").tolist()
    assert predicted_labels(one.drop(columns="threshold")) is None


def test_time_lost_is_the_area_above_the_curve():
    times = np.linspace(0, 10, 1001)
    lost = time_lost(times, np.stack([np.ones_like(times), np.exp(-times / 4), times * 0]))
    np.testing.assert_allclose(lost, [0, 10 - 4 * (1 - np.exp(-2.5)), 10], rtol=1e-4)


def test_horizons_are_deciles_of_the_distinct_event_times():
    words = [*(str(t) for t in range(10, 110, 10)), "5+", "200+", "0"]
    assert horizons_of(words) == (19, 28, 37, 46, 55, 64, 73, 82, 91)
    assert horizons_of(words * 3) == horizons_of(words)
    assert horizons_of(["3", "3", "9+"]) == (3,)
    assert horizons_of(["0", "4+"]) == ()
