"""Columns of a sheet predict what depends on them, and nothing else."""

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


def test_a_column_that_goes_with_the_label_tells_it(rng):
    units = _patients(rng)
    assert _auroc(units, ["site"]) > 0.75
    assert _auroc(units, ["age"]) > 0.85
    assert abs(_auroc(units, ["noise"]) - 0.5) < 0.2


def test_numbers_are_numbers_words_are_words_and_unknown_is_told():
    table = pd.DataFrame({"age": ["40", "", "60"], "grade": ["low", "high", ""], "n": [1, 2, 3]})
    np.testing.assert_array_equal(column_features(table, ["age"]), [[40, 0], [50, 1], [60, 0]])
    np.testing.assert_array_equal(
        column_features(table, ["grade"]), [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    )
    np.testing.assert_array_equal(column_features(table, ["n"])[:, 0], [1, 2, 3])


@pytest.mark.parametrize("word", ["", "NA", "n/a", "unknown", "[Not Available]"])
def test_one_unknown_age_is_the_median_of_training_and_turns_no_number_into_a_word(word):
    table = pd.DataFrame({"age": ["40", word, "60", "90"]})
    training = np.array([True, True, True, False])
    expected = [[40, 0], [50, 1], [60, 0], [90, 0]]
    np.testing.assert_array_equal(column_features(table, ["age"], training), expected)


def test_a_baseline_is_judged_on_what_the_encoders_were_judged_on(rng):
    units = _patients(rng, 24)
    folds = make_folds(units[["patient_id", "label"]], kind="cv", folds=3)
    predictions = predict_from_columns(units, ["site"], folds, seed=0, classes=["0", "1"])
    answered = predictions.iloc[5:]
    kept = same_rows(predictions, [answered, predictions], "patient")
    assert sorted(kept["patient_id"]) == sorted(answered["patient_id"])


def test_a_site_that_is_left_out_tells_nothing(rng):
    units = _patients(rng)
    folds = make_folds(units[["patient_id", "label", "site"]], kind="leave-one-out", group="site")
    predictions = predict_from_columns(units, ["site"], folds, seed=0, classes=["0", "1"])
    for _, rows in predictions.groupby("fold"):
        assert rows["p_1"].nunique() == 1


def test_without_information_every_fold_says_one_half(rng):
    """Left out positives must not show as a lower share of positives in what is left."""
    units = _patients(rng, 21).assign(site="a")
    folds = make_folds(units[["patient_id", "label"]], kind="cv", folds=3)
    predictions = predict_from_columns(units, ["site"], folds, seed=0, classes=["0", "1"])
    np.testing.assert_allclose(predictions["p_1"], 0.5, atol=0.01)


def test_no_tested_patient_is_a_sentence(rng):
    units = _patients(rng, 20)
    folds = make_folds(units[["patient_id", "label"]], kind="cv", folds=2)
    with pytest.raises(StainsslError, match="No test patient"):
        predict_from_columns(
            units, ["site"], folds[folds["role"] != "test"], seed=0, classes=["0", "1"]
        )


def test_scanner_columns_say_where_a_slide_was_made():
    assert site_columns(["slide_id", "site", "Scanner", "her2"]) == ["site", "Scanner"]
