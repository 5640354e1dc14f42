"""Baselines that predict a label from columns of the sheet."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stainssl.cohort import site_columns
from stainssl.errors import StainsslError
from stainssl.evaluation.baselines import column_features, predict_from_columns, same_rows
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.folds import make_folds


def _patients(rng: np.random.Generator, count: int = 80) -> pd.DataFrame:
    label = rng.integers(0, 2, count)
    return pd.DataFrame(
        {
            "patient_id": [f"p{i:02d}" for i in range(count)],
            "slide_id": "",
            "site": np.where(rng.random(count) < 0.85, label, 1 - label).astype(str),
            "age": (50 + 20 * label + rng.normal(0, 8, count)).round().astype(int).astype(str),
            "noise": rng.integers(0, 3, count).astype(str),
            "label": label.astype(str),
        }
    )


def _auroc(units: pd.DataFrame, columns: list[str]) -> float:
    folds = make_folds(units[["patient_id", "label"]], kind="cv", folds=4)
    predictions = predict_from_columns(units, columns, folds, seed=0, classes=["0", "1"])
    assert sorted(predictions["patient_id"]) == sorted(units["patient_id"])
    rows = evaluate(predictions, "patient", 0, resamples=200).set_index(["metric", "group"])
    return float(rows.loc[("auroc", "all"), "value"])


def test_auroc_is_high_for_columns_correlated_with_the_label(rng):
    units = _patients(rng)
    assert _auroc(units, ["site"]) > 0.75
    assert _auroc(units, ["age"]) > 0.85
    assert abs(_auroc(units, ["noise"]) - 0.5) < 0.2


def test_numbers_are_kept_words_are_one_hot_and_unknown_cells_are_indicated():
    table = pd.DataFrame({"age": ["40", "", "60"], "grade": ["low", "high", ""], "n": [1, 2, 3]})
    np.testing.assert_array_equal(column_features(table, ["age"]), [[40, 0], [50, 1], [60, 0]])
    np.testing.assert_array_equal(
        column_features(table, ["grade"]), [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    )
    np.testing.assert_array_equal(column_features(table, ["n"])[:, 0], [1, 2, 3])


@pytest.mark.parametrize("word", ["", "NA", "n/a", "unknown", "[Not Available]"])
def test_unknown_number_becomes_the_training_median_and_the_column_stays_numeric(word):
    table = pd.DataFrame({"age": ["40", word, "60", "90"]})
    training = np.array([True, True, True, False])
    expected = [[40, 0], [50, 1], [60, 0], [90, 0]]
    np.testing.assert_array_equal(column_features(table, ["age"], training), expected)


def test_same_rows_keeps_the_units_that_all_tables_have(rng):
    units = _patients(rng, 24)
    folds = make_folds(units[["patient_id", "label"]], kind="cv", folds=3)
    predictions = predict_from_columns(units, ["site"], folds, seed=0, classes=["0", "1"])
    evaluated = predictions.iloc[5:]
    kept = same_rows(predictions, [evaluated, predictions], "patient")
    assert sorted(kept["patient_id"]) == sorted(evaluated["patient_id"])


def test_site_column_is_uninformative_if_the_test_site_is_left_out(rng):
    units = _patients(rng)
    folds = make_folds(units[["patient_id", "label", "site"]], kind="leave-one-out", group="site")
    predictions = predict_from_columns(units, ["site"], folds, seed=0, classes=["0", "1"])
    for _, rows in predictions.groupby("fold"):
        assert rows["p_1"].nunique() == 1


def test_uninformative_column_gives_one_half_in_every_fold(rng):
    """Class frequencies of the training part, which depend on the test part, do not show."""
    units = _patients(rng, 21).assign(site="a")
    folds = make_folds(units[["patient_id", "label"]], kind="cv", folds=3)
    predictions = predict_from_columns(units, ["site"], folds, seed=0, classes=["0", "1"])
    np.testing.assert_allclose(predictions["p_1"], 0.5, atol=0.01)


def test_folds_without_test_patients_are_refused(rng):
    units = _patients(rng, 20)
    folds = make_folds(units[["patient_id", "label"]], kind="cv", folds=2)
    with pytest.raises(StainsslError, match="No test patient"):
        predict_from_columns(
            units, ["site"], folds[folds["role"] != "test"], seed=0, classes=["0", "1"]
        )


def test_scanner_columns_are_site_columns():
    assert site_columns(["slide_id", "site", "Scanner", "her2"]) == ["site", "Scanner"]
