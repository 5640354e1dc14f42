"""Survival tasks: labels, folds, baselines from columns of the sheet, and the figure."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lifelines.statistics import logrank_test
from scipy.stats import spearmanr
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from stainssl.config import dump, load, parse
from stainssl.errors import StainsslError
from stainssl.evaluation import baselines
from stainssl.evaluation.columns import column_features
from stainssl.evaluation.folds import each_fold
from stainssl.evaluation.follow_up import follow_up, follow_up_word, horizons_of
from stainssl.evaluation.kinds import labels_of
from stainssl.evaluation.metrics import METRICS
from stainssl.evaluation.predictions import read_scored
from stainssl.evaluation.risk_groups import RiskGroups
from stainssl.figures.survival import survival_figure


def _config(**keys):
    task = {
        "level": "patient", "kind": "survival", "time": "months", "event": "died",
        "cohorts": ["c"], **keys,
    }  # fmt: skip
    return parse({"cohorts": {"c": {"sheet": "c.csv"}}, "tasks": {"t": task}})


def _labels(**keys):
    return labels_of(_config(**keys).tasks["t"])


def _rows(months, died):
    names = [f"s{i}" for i in range(len(months))]
    cells = {"months": list(months), "died": list(died)}
    return pd.DataFrame({"slide_id": names, "patient_id": names, **cells})


# --- the label -----------------------------------------------------------------------------------


@given(st.floats(0, 1e5, allow_subnormal=False), st.booleans())
def test_a_follow_up_is_unchanged_by_writing_and_parsing(time, event):
    back, came = follow_up([follow_up_word(time, event)])
    assert back[0] == time
    assert came[0] == event


def test_cells_are_read_with_decimal_comma_or_point_and_usual_event_words():
    rows = _rows(
        ["12,5", "3.0", 7, "0", "NA", "4", "", "9"],
        ["1", "0", True, "Yes", "1", "unknown", "no", "false"],
    )
    assert _labels().words_of(rows).tolist() == ["12.5", "3+", "7", "0", "", "", "", "9+"]


def test_event_words_are_set_by_classes_and_unknown_words_by_na():
    classes = {"event": ["Dead", "1:DECEASED"], "censored": ["alive"]}
    labels = _labels(classes=classes, na=["lost", "-9"])
    rows = _rows(["1", "2", "3", "4", "-9"], ["dead", "Alive", "1:Deceased", "lost", "1"])
    assert labels.problems(rows) == []
    assert labels.words_of(rows).tolist() == ["1", "2+", "3", "", ""]


@pytest.mark.parametrize("word", ["-1", "<3", "long", "inf", "3 months"])
def test_an_unreadable_time_is_refused_with_its_slide(word):
    (problem,) = _labels().problems(_rows(["3", word], ["1", "0"]))
    assert f"slide s1: {word!r}" in problem
    assert "'months' must be a number from 0 on" in problem
    with pytest.raises(StainsslError, match=r"is not in 1 row\(s\)"):
        _labels().words_of(_rows(["3", word], ["1", "0"]))


def test_unreadable_cells_of_both_columns_are_reported_with_their_count():
    first, second = _labels().problems(_rows(["x", "2", "3"], ["Dead", "Dead", "2"]))
    assert "'months'" in first
    assert "'Dead' (2), '2' (1)" in second


def test_patients_with_two_follow_ups_and_tasks_without_events_are_problems():
    rows = _rows(["3", "3", "5"], ["1", "0", "1"]).assign(patient_id=["a", "a", "b"])
    assert "a (3 and 3+)" in _labels().problems(rows)[0]
    rows = rows.assign(died=["1", "1", "1"])
    assert _labels().problems(rows) == []
    assert "none of 3 patients has an event" in _labels().problems(_rows("345", "000"))[0]
    assert "after time 0" in _labels().problems(_rows("045", "100"))[0]
    assert "none of 0 patients" in _labels().problems(_rows(["NA"], ["1"]))[0]


def test_the_summary_has_counts_and_the_median_follow_up():
    rows = _rows(["2", "4", "6", "8", "10", "NA"], ["0", "1", "0", "0", "1", "1"])
    first, unknown = _labels().summary(rows)
    assert first.startswith("follow-up: 2 events, 3 censored, median follow-up 8 ('months')")
    assert unknown == "unknown: months 'NA' (1 patient, 1 slide)"
    assert "nobody is censored" in _labels().summary(_rows("34", "11"))[0]
    assert "not reached" in _labels().summary(_rows("1234", "0111"))[0]


def test_unknown_follow_ups_are_counted_by_the_column_that_is_unknown():
    """Known cells are not listed, since there are as many as patients."""
    rows = _rows(["2", "3", "4", "5", "NA", "NA"], ["0", "1", "NA", "NA", "1", "NA"])
    *_, unknown = _labels().summary(rows)
    assert unknown == (
        "unknown: died 'NA' (2 patients, 2 slides), months 'NA' (1 patient, 1 slide),"
        " months 'NA' and died 'NA' (1 patient, 1 slide)"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"label": "her2"}, "label: a task of kind survival uses time and event"),
        ({"event": ""}, "a task of kind survival needs event: name the sheet's column"),
        ({"event": "months"}, "time and event name the same column"),
        ({"level": "tile"}, "kind survival is for tasks of level slide or patient"),
        ({"classes": {"dead": ["1"], "alive": ["0"]}}, "are 'event' and 'censored'"),
        ({"threshold": 0.3}, "threshold: not for a task of kind survival"),
        ({"metrics": ["auroc"]}, "auroc is not for kind survival"),
        ({"clinical": ["months"]}, "clinical has the time 'months'"),
        ({"kind": "regression"}, "a task of kind regression needs label"),
        ({"kind": "regression", "label": "x"}, "time and event: a task of kind regression uses"),
        ({"time": "path"}, "tasks.t.time: 'path' is reserved"),
    ],
)
def test_keys_of_other_kinds_are_refused(keys, message):
    with pytest.raises(StainsslError, match=message):
        _config(**keys)


def test_a_config_is_unchanged_by_writing_and_reading(tmp_path):
    config = _config(metrics=["c_index", "integrated_brier"])
    (tmp_path / "c.yaml").write_text(dump(config))
    assert load(tmp_path / "c.yaml") == config
    assert _config().tasks["t"].metrics == ["c_index"]


# --- folds ---------------------------------------------------------------------------------------


def _cohort(rng, patients=60, hazard=None):
    hazard = rng.normal(size=patients) if hazard is None else hazard
    time = np.round(rng.exponential(20 * np.exp(-hazard)), 3)
    end = np.round(rng.exponential(40, patients), 3)
    rows = _rows(np.minimum(time, end).astype(str), (time <= end).astype(int).astype(str))
    age = (60 + 10 * hazard).round().astype(str)
    return rows.assign(age=age, site=["ab"[i % 2] for i in range(patients)])


def _folds(rows, **split):
    labels, task = _labels(split=split), _config(split=split).tasks["t"]
    return labels, *labels.folds(rows, "patient", task.split, seed=0)


def test_events_are_balanced_over_the_parts_of_every_fold(rng):
    labels, patients, folds = _folds(_cohort(rng), kind="cv", folds=5, repeats=2)
    event = patients.set_index("patient_id")["_event"]
    for _, _, role in each_fold(folds):
        for part in role.values():
            assert event[sorted(part)].mean() == pytest.approx(event.mean(), abs=0.15)
    assert labels.ranking_problem(patients, folds) is None
    assert labels.fold_notes(patients, folds) == []


def test_slides_of_one_patient_are_in_the_same_fold_at_level_slide(rng):
    rows = _cohort(rng, 30)
    twice = pd.concat([rows, rows.assign(slide_id=rows["slide_id"] + "b")], ignore_index=True)
    labels, split = _labels(), _config(split={"folds": 3}).tasks["t"].split
    assert labels.problems(twice) == []
    patients, folds = labels.folds(twice, "slide", split, seed=0)
    assert len(patients) == 30
    assert folds.groupby("fold").size().tolist() == [30] * 3


def test_a_cohort_without_censoring_can_be_folded():
    labels, patients, folds = _folds(_rows([str(i) for i in range(12)], "1" * 12), folds=4)
    assert "4 of 4 folds test fewer than 4 events" in labels.fold_notes(patients, folds)[0]
    assert labels.ranking_problem(patients, folds) is None


def test_too_few_events_and_a_missing_comparable_pair_are_refused():
    rows = _rows([str(i) for i in range(9)], "110000000")
    with pytest.raises(StainsslError, match=r"2 event\(s\) of 'died', fewer than folds \(3\)"):
        _folds(rows, kind="cv", folds=3)
    with pytest.raises(StainsslError, match="there is no comparable pair"):
        _folds(_rows("11199", "00011"), kind="cv", folds=2)
    split = ["train"] * 4 + ["test"] * 5
    with pytest.raises(StainsslError, match="training split has 4 patient"):
        _folds(rows.assign(died=list("000010000"), split=split), kind="sheet")


def test_leave_one_out_is_a_ranking_problem():
    labels, patients, folds = _folds(_rows("3456", "1111"), kind="leave-one-out")
    assert "metrics: [integrated_brier]" in labels.ranking_problem(patients, folds)


# --- columns of the sheet ------------------------------------------------------------------------


def _units(rows):
    return rows.assign(label=_labels().words_of(rows))


def test_cox_regression_learns_from_a_column_and_ranks_like_scikit_survival(rng):
    units = _units(_cohort(rng, 90))
    _, _, folds = _folds(units, kind="cv", folds=3)
    found = baselines.predict_survival_from_columns(units, ["age"], folds)
    scored = read_scored(found, "patient")
    assert METRICS["c_index"].value(scored) > 0.65
    assert len(found) == 90
    curves = found[[c for c in found if c.startswith("s_")]].to_numpy()
    assert (np.diff(curves, axis=1) <= 0).all()
    two = baselines.predict_survival_from_columns(units, ["age", "site"], folds)
    _, _, role = next(iter(each_fold(folds)))
    training = units["patient_id"].isin(role["train"] | role["val"]).to_numpy()
    x = column_features(units, ["age", "site"], training)
    x = x[:, x[training].std(axis=0) > 0]
    time, event = follow_up(units["label"])
    z = (x - x[training].mean(axis=0)) / x[training].std(axis=0)
    oracle = CoxPHSurvivalAnalysis(alpha=baselines.COX_PENALTY * training.sum(), ties="efron")
    oracle.fit(z[training], Surv.from_arrays(event[training], time[training]))
    mine = two.query("fold == 0")["risk"]
    assert spearmanr(mine, oracle.predict(z[~training])).statistic > 0.99


def test_without_columns_the_kaplan_meier_curve_is_predicted(rng):
    units = _units(_cohort(rng))
    _, _, folds = _folds(units, kind="cv", folds=3)
    found = baselines.predict_survival_from_columns(units, [], folds)
    assert found.groupby("fold")["risk"].nunique().tolist() == [1, 1, 1]
    _, _, role = next(iter(each_fold(folds)))
    training = units["patient_id"].isin(role["train"] | role["val"])
    time, event = follow_up(units.loc[training, "label"])
    at, survival = kaplan_meier_estimator(event, time)
    first = found.query("fold == 0").iloc[0]
    for t in horizons_of(units["label"]):
        place = np.searchsorted(at, t, side="right") - 1
        expected = survival[place] if place >= 0 else 1.0
        assert first[f"s_{t:g}"] == pytest.approx(expected)


def test_constant_columns_are_ignored_and_separating_ones_give_finite_predictions(rng):
    units = _units(_cohort(rng)).assign(same="1")
    units["tells"] = units["died"].map({"1": "yes", "0": "no"})
    _, _, folds = _folds(units, kind="cv", folds=3)
    same = baselines.predict_survival_from_columns(units, ["same"], folds)
    nothing = baselines.predict_survival_from_columns(units, [], folds)
    pd.testing.assert_frame_equal(same, nothing)
    separated = baselines.predict_survival_from_columns(units, ["tells"], folds)
    assert np.isfinite(separated[[c for c in separated if c.startswith("s_")]].to_numpy()).all()


def test_values_beyond_the_training_range_are_clipped_to_it(rng):
    units = _units(_cohort(rng))
    _, _, folds = _folds(units, kind="cv", folds=3)
    _, _, role = next(iter(each_fold(folds)))
    outlier = units["patient_id"] == min(role["test"])
    edge = units["age"].astype(float)[~units["patient_id"].isin(role["test"])].max()
    found = [
        baselines.predict_survival_from_columns(
            units.assign(age=units["age"].mask(outlier, str(age))), ["age"], folds
        ).query("fold == 0")
        for age in (edge, 1e12)
    ]
    pd.testing.assert_frame_equal(*found)
    assert np.isfinite(found[0]["risk"]).all()


# --- the figure ----------------------------------------------------------------------------------


def _groups(rng, n=40):
    high = rng.random(n) < 0.5
    time = rng.exponential(np.where(high, 10, 25)).round(1)
    return RiskGroups(time, rng.random(n) < 0.7, high, "months")


def test_the_p_value_equals_the_log_rank_test_and_numbers_at_risk_are_counted(rng):
    groups = _groups(rng)
    (low, low_event), (high, high_event) = (groups.group(name) for name in ("low", "high"))
    expected = logrank_test(low, high, low_event, high_event).p_value
    assert groups.p_value() == pytest.approx(expected)
    at = np.array([0.0, 5.0, 1e9])
    assert groups.at_risk("low", at) == [len(low), int((low >= 5).sum()), 0]


def test_the_figure_shows_the_log_rank_test_the_numbers_at_risk_and_the_unit(rng):
    groups = _groups(rng)
    nobody = RiskGroups(np.array([3.0, 4]), np.zeros(2, bool), np.array([True, True]), "months")
    figure = survival_figure({"os: a": groups, "os: b": nobody})
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert panels[0].get_xlabel() == "months"
    title = panels[0].get_legend().get_title().get_text()
    assert title == f"log-rank p = {groups.p_value():.2g}"
    assert {str(n) for n in groups.at_risk("low", np.zeros(1))} <= {
        text.get_text() for axes in panels for text in axes.texts
    }
    crossed = survival_figure({"os": dataclasses.replace(groups, is_crossed=True)}).axes[0]
    assert "too small" in crossed.get_legend().get_title().get_text()
    second = [axes.get_legend() for axes in panels if axes.get_legend()][1]
    assert "undefined" in second.get_title().get_text()
    assert "no task is of kind survival" in survival_figure({})
