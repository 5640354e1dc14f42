"""Regression tasks: labels, folds, metrics, comparisons and baselines."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score

from stainssl.config import parse
from stainssl.errors import StainsslError
from stainssl.evaluation import baselines
from stainssl.evaluation.compare import compare_all, compare_two
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.folds import each_fold
from stainssl.evaluation.kinds import labels_of
from stainssl.evaluation.metrics import METRICS, confidence_interval, estimate
from stainssl.evaluation.predictions import ensemble, read_scored
from stainssl.evaluation.regression import RegressionLabels
from stainssl.evaluation.regression_metrics import REGRESSION_METRICS, weighted_ranks

ORACLE = {
    "pearson": lambda y, v: pearsonr(y, v).statistic,
    "spearman": lambda y, v: spearmanr(y, v).statistic,
    "mae": mean_absolute_error,
    "r2": r2_score,
}


def _task(**keys):
    task = {"level": "patient", "kind": "regression", "label": "ki67", "cohorts": ["c"], **keys}
    return parse({"cohorts": {"c": {"sheet": "c.csv"}}, "tasks": {"t": task}}).tasks["t"]


def _predictions(rng, patients=30, folds=1, repeats=1, units=1, noise=1.0, tied=False):
    """True numbers and noisy predictions; those of each fold have a different level."""
    rows = []
    true = np.round(rng.normal(20, 8, (patients, units)), 0 if tied else 6)
    for repeat in range(repeats):
        fold = rng.permutation(patients) % folds
        predicted = (
            true + rng.normal(size=true.shape) * 8 * noise + 100 * fold[:, None] * (folds > 1)
        )
        for p in range(patients):
            for u in range(units):
                rows.append({
                    "patient_id": f"p{p:03d}", "slide_id": f"s{p:03d}-{u}" if units > 1 else "",
                    "site": "ab"[p % 2], "repeat": repeat, "fold": int(fold[p]),
                    "y": true[p, u], "value": predicted[p, u],
                })  # fmt: skip
    return pd.DataFrame(rows)


# --- the label -----------------------------------------------------------------------------------


def test_numbers_are_read_with_decimal_comma_or_point_and_unknown_words_are_empty():
    cells = pd.Series(["12,5", "12.50", " 3 ", "1e1", "-0.5", "NA", "", None, "unknown", 7, 7.25])
    words = labels_of(_task()).words(cells).tolist()
    assert words == ["12.5", "12.5", "3", "10", "-0.5", "", "", "", "", "7", "7.25"]
    assert labels_of(_task(na=[-9])).words(pd.Series(["-9", "4"])).tolist() == ["", "4"]


@pytest.mark.parametrize("word", ["<1", "12 %", "high", "1.234.5", "inf", "1 2"])
def test_text_is_refused_with_its_rows(word):
    with pytest.raises(StainsslError, match=r"is text in 1 row\(s\), row 2"):
        labels_of(_task()).words(pd.Series(["3", word, "5"]))
    rows = pd.DataFrame({"slide_id": ["a", "b"], "patient_id": ["a", "b"], "ki67": ["3", word]})
    (problem,) = labels_of(_task()).problems(rows)
    assert f"slide b: {word!r}" in problem
    assert "'na'" in problem


def test_equal_numbers_are_a_problem():
    rows = pd.DataFrame({"slide_id": list("ab"), "patient_id": list("ab"), "ki67": ["3", "3.0"]})
    assert "needs different values" in labels_of(_task()).problems(rows)[0]
    assert labels_of(_task()).problems(rows.assign(ki67=["3", "4"])) == []


def test_the_summary_has_the_range_and_codes_that_may_mean_unknown():
    rows = pd.DataFrame({"patient_id": list("abcd"), "ki67": ["1", "2,5", "-9", "NA"]})
    lines = labels_of(_task()).summary(rows)
    assert lines[0].startswith("numbers: -9 to 2.5, median 1")
    assert "3 patients" in lines[0]
    assert lines[1].startswith("-9: if that means unknown")
    assert lines[2] == "unknown: 'NA' (1 patient, 1 slide)"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"classes": {"a": [], "b": []}}, "classes: not for a task of kind regression"),
        ({"threshold": 0.4, "class_weight": "none"}, "class_weight, threshold: not for"),
        ({"metrics": ["auroc"]}, "auroc is not for kind regression"),
        ({"level": "tile"}, "level slide or patient"),
        ({"kind": "classification", "metrics": ["mae"]}, "mae is not for kind classification"),
    ],
)
def test_keys_of_other_kinds_are_refused(keys, message):
    with pytest.raises(StainsslError, match=message):
        _task(**keys)


def test_spearman_is_the_default_metric_and_clam_is_refused():
    assert _task().metrics == ["spearman"]
    config = {
        "cohorts": {"c": {"sheet": "c.csv"}}, "encoders": {"e": {"method": "random"}},
        "tasks": {"t": {"level": "slide", "kind": "regression", "label": "k", "cohorts": ["c"]}},
        "heads": {"h": {"kind": "clam"}},
        "benchmarks": {"b": {"tasks": ["t"], "encoders": ["e"], "heads": ["h"]}},
    }  # fmt: skip
    with pytest.raises(StainsslError, match="kind clam"):
        parse(config)


# --- folds ---------------------------------------------------------------------------------------


def _folds(values, level="patient", **split):
    rows = pd.DataFrame({"patient_id": [f"p{i:03d}" for i in range(len(values))], "ki67": values})
    labels = RegressionLabels("ki67")
    task = _task(level=level, split={"kind": "cv", **split})
    return labels.folds(rows, level, task.split, seed=0)


def test_every_fold_and_its_validation_part_have_low_and_high_numbers(rng):
    values = rng.exponential(20, 60)
    patients, folds = _folds(values, folds=5, repeats=2)
    number = patients.set_index("patient_id")["value"]
    for _, _, role in each_fold(folds):
        for part in role.values():
            ranks = number.rank(pct=True)[sorted(part)]
            assert ranks.min() < 0.3
            assert ranks.max() > 0.7
        assert len(role["test"]) == 12
    labels = RegressionLabels("ki67")
    assert labels.ranking_problem(patients, folds) is None
    assert labels.fold_notes(patients, folds) == []


def test_many_equal_numbers_can_be_folded():
    patients, folds = _folds(["0"] * 16 + ["5", "7", "30", "80"], folds=4)
    assert folds.groupby(["fold", "role"]).size().loc[:, "test"].tolist() == [5] * 4
    assert patients["value"].max() == 80


def test_too_few_patients_and_a_single_value_are_refused():
    with pytest.raises(StainsslError, match=r"fewer patients \(3\) than folds \(5\)"):
        _folds([1, 2, 3], folds=5)
    with pytest.raises(StainsslError, match=r"with 1 value"):
        _folds([4] * 10, folds=2)


def test_leave_one_out_is_a_ranking_problem_and_small_folds_are_noted():
    rows = pd.DataFrame({"patient_id": [f"p{i}" for i in range(8)], "ki67": range(8)})
    labels, split = RegressionLabels("ki67"), _task(split={"kind": "leave-one-out"}).split
    made = labels.folds(rows, "patient", split, seed=0)
    assert "metrics: [mae]" in labels.ranking_problem(*made)
    assert "8 of 8 folds test fewer than 4 patients" in labels.fold_notes(*made)[0]


def test_folds_of_a_slide_task_use_the_highest_number_of_a_patient():
    rows = pd.DataFrame({"patient_id": list("aabbccdd"), "ki67": [9, 10, 1, 2, 3, 4, 5, 6]})
    labels, split = RegressionLabels("ki67"), _task(split={"kind": "cv", "folds": 2}).split
    patients, _ = labels.folds(rows, "slide", split, seed=0)
    assert patients["value"].tolist() == [10, 2, 4, 6]


# --- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("metric", REGRESSION_METRICS)
def test_metric_and_its_resamples_equal_scipy_or_scikit_learn(rng, metric, tied):
    table = _predictions(rng, units=2, tied=tied)
    scored = read_scored(table, "slide")
    assert METRICS[metric].value(scored) == pytest.approx(ORACLE[metric](scored.y, scored.value))
    weights = rng.integers(0, 4, (5, scored.patients)).astype(float)
    for row, found in zip(weights, METRICS[metric].resampled(scored, weights), strict=True):
        kept = np.repeat(np.arange(len(scored.y)), row[scored.patient].astype(int))
        assert found == pytest.approx(ORACLE[metric](scored.y[kept], scored.value[kept]))


def test_weighted_ranks_equal_scipy(rng):
    numbers = rng.integers(0, 6, 20).astype(float)
    found = weighted_ranks(numbers, np.ones((1, 20)))[0]
    np.testing.assert_allclose(found, (rankdata(numbers) - 0.5) / 20)


def test_correlations_are_computed_within_folds(rng):
    """Levels of folds carry no information: pooled, they would hide good predictions."""
    table = _predictions(rng, patients=60, folds=3, noise=0.3)
    scored = read_scored(table, "patient")
    within = table[["y", "value"]] - table.groupby("fold")[["y", "value"]].transform("mean")
    assert METRICS["pearson"].value(scored) == pytest.approx(pearsonr(*within.to_numpy().T)[0])
    ranks = table.groupby("fold")[["y", "value"]].rank(pct=True)
    ranks -= ranks.groupby(table["fold"]).transform("mean")
    assert METRICS["spearman"].value(scored) == pytest.approx(pearsonr(*ranks.to_numpy().T)[0])
    assert METRICS["spearman"].value(scored) > 0.85 > spearmanr(scored.y, scored.value)[0]


def test_repeats_are_averaged(rng):
    table = _predictions(rng, folds=2, repeats=3)
    each = [METRICS["pearson"].value(read_scored(t, "patient")) for _, t in table.groupby("repeat")]
    assert METRICS["pearson"].value(read_scored(table, "patient")) == pytest.approx(np.mean(each))


def test_constant_predictions_have_zero_correlation_and_no_interval(rng):
    table = _predictions(rng, folds=2).assign(value=17.0)
    rows = evaluate(table, "patient", 0, resamples=200).query("group == 'all'").set_index("metric")
    assert rows.loc[["pearson", "spearman"], "value"].tolist() == [0, 0]
    assert rows.loc[["pearson", "spearman"], "low"].isna().all()
    assert rows.loc["r2", "value"] <= 0
    assert rows.loc["mae", "low"] > 0
    assert (rows["classes"] == 0).all()


def test_metrics_over_all_and_by_site_do_not_depend_on_the_unit(rng):
    table = _predictions(rng, patients=40, folds=4)
    rows = evaluate(table, "patient", 0, resamples=300)
    assert set(rows["group"]) == {"all", "site=a", "site=b"}
    assert rows.query("group == 'all'")["metric"].tolist() == list(REGRESSION_METRICS)
    again = evaluate(
        table.assign(y=table["y"] * 10 + 3, value=table["value"] * 10 + 3), "patient", 0,
        resamples=300,
    )  # fmt: skip
    scale = np.where(rows["metric"] == "mae", 10.0, 1.0)
    np.testing.assert_allclose(again["value"], rows["value"] * scale)
    np.testing.assert_allclose(again["low"], rows["low"] * scale)


def test_only_the_absolute_error_is_defined_if_all_true_values_are_equal(rng, caplog):
    rows = evaluate(_predictions(rng).assign(y=3.0), "patient", 0, resamples=50)
    known = rows.query("group == 'all'").set_index("metric")["value"]
    assert known.drop("mae").isna().all()
    assert np.isfinite(known["mae"])
    assert "one value" in caplog.text


@pytest.mark.parametrize("metric", REGRESSION_METRICS)
def test_intervals_have_nominal_coverage(rng, metric):
    truth = METRICS[metric].value(read_scored(_predictions(rng, patients=20_000), "patient"))
    hits = []
    for _ in range(120):
        scored = read_scored(_predictions(rng, patients=30), "patient")
        low, high = confidence_interval(metric, scored, resamples=300)
        hits.append(low <= truth <= high)
    assert np.mean(hits) > 0.88


def test_cross_validated_correlations_have_wider_intervals(rng):
    table = _predictions(rng, patients=40, noise=3.0)
    one = estimate("pearson", read_scored(table, "patient")).interval
    folds = table.assign(fold=np.arange(40) % 4)
    four = estimate("pearson", read_scored(folds, "patient")).interval
    assert np.diff(four) > 1.15 * np.diff(one)
    assert four[0] >= -1
    assert four[1] <= 1


def test_numbers_that_are_not_finite_are_refused(rng):
    table = _predictions(rng)
    table.loc[0, "value"] = np.nan
    with pytest.raises(StainsslError, match="1 rows are not finite"):
        read_scored(table, "patient")


# --- comparisons, baselines, external cohorts -----------------------------------------------------


@pytest.mark.parametrize("metric", ["spearman", "mae"])
def test_comparison_finds_the_better_predictions_and_no_difference_to_the_same(rng, metric):
    good = _predictions(rng, patients=40, folds=2, noise=0.2)
    good["value"] -= 100 * good["fold"]
    bad = good.assign(value=good["value"] + rng.normal(0, 20, len(good)))
    found = compare_two([good], [bad], "patient", metric=metric, resamples=500)
    sign = 1 if METRICS[metric].higher_is_better else -1
    assert sign * found["difference"] > 0
    assert found["p"] < 0.05
    assert min(sign * found["low"], sign * found["high"]) > 0
    same = compare_two([good], [good], "patient", metric=metric, resamples=200)
    assert same["difference"] == 0
    assert same["p"] == 1
    table = compare_all({"a": [good], "b": [bad]}, "patient", metric=metric, resamples=200)
    assert table["patients"].tolist() == [40]


def _units(rng, n=60):
    age = rng.uniform(30, 80, n)
    label = (age / 2 + rng.normal(0, 2, n)).astype(str)
    return pd.DataFrame({
        "patient_id": [f"p{i:02d}" for i in range(n)], "slide_id": "", "site": "a", "age": age,
        "grade": rng.choice(["1", "2", "NA"], n), "label": label,
    })  # fmt: skip


def test_ridge_on_columns_equals_scikit_learn_and_learns_from_a_column(rng):
    units = _units(rng)
    split = _task(split={"kind": "cv", "folds": 3}).split
    labels = RegressionLabels("label")
    _, folds = labels.folds(units, "patient", split, seed=0)
    found = baselines.predict_number_from_columns(units, ["age", "grade"], folds)
    assert METRICS["spearman"].value(read_scored(found, "patient")) > 0.9
    assert len(found) == len(units)
    _, _, role = next(iter(each_fold(folds)))
    training = units["patient_id"].isin(role["train"] | role["val"]).to_numpy()
    x, y = units["age"].to_numpy()[:, None], units["label"].astype(float).to_numpy()
    mean, std = x[training].mean(), x[training].std()
    oracle = RidgeCV(baselines.PENALTIES).fit((x[training] - mean) / std, y[training])
    alone = baselines.predict_number_from_columns(units, ["age"], folds).query("fold == 0")
    expected = oracle.predict((x[~training] - mean) / std)
    np.testing.assert_allclose(alone["value"], expected, rtol=1e-5)


def test_without_columns_the_training_mean_is_predicted(rng):
    units = _units(rng)
    split = _task(split={"kind": "cv", "folds": 3}).split
    labels = RegressionLabels("label")
    _, folds = labels.folds(units, "patient", split, seed=0)
    found = baselines.predict_number_from_columns(units, [], folds)
    assert found.groupby("fold")["value"].nunique().tolist() == [1, 1, 1]
    number = units.set_index("patient_id")["label"].astype(float)
    test = set(found.query("fold == 1")["patient_id"])
    expected = number[~number.index.isin(test)].mean()
    assert found.query("fold == 1")["value"].iloc[0] == pytest.approx(expected)


def test_an_ensemble_averages_the_predictions_of_all_models(rng):
    table = _predictions(rng, repeats=3)
    scored = read_scored(ensemble(table, "patient"), "patient")
    mean = table.groupby("patient_id")["value"].mean().to_numpy()
    np.testing.assert_allclose(scored.value, mean)
    assert METRICS["pearson"].value(scored) == pytest.approx(pearsonr(scored.y, mean)[0])
