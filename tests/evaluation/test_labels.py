"""Reading a label's column: unknown words, classes, problems and the summary."""

import numpy as np
import pandas as pd
import pytest
from pandas._libs.parsers import STR_NA_VALUES

from stainssl.config import parse
from stainssl.errors import StainsslError
from stainssl.evaluation.kinds import labels_of
from stainssl.evaluation.labels import (
    Labels,
    is_unknown,
    label_problems,
    label_summary,
)


@pytest.mark.parametrize(
    "word",
    [*sorted(STR_NA_VALUES), "[Not Available]", "[Not Evaluated]", "unknown", "UNKNOWN", "-", "?",
     "Indeterminate", " na ", None, np.nan],
)  # fmt: skip
def test_usual_words_for_unknown_are_recognized(word):
    assert is_unknown(word)


@pytest.mark.parametrize("word", ["0", "negative", "+", "nano", "1", "no", "none of them"])
def test_class_names_are_not_unknown(word):
    assert not is_unknown(word)


def _rows(words):
    patients = [f"p{i // 2}" for i in range(len(words))]
    return pd.DataFrame({"patient_id": patients, "her2": words})


def test_words_are_mapped_to_ordered_classes_regardless_of_case():
    classes = {"0-1": ["0", "1+"], "2+": ["equivocal"], "3+": ["pos"]}
    labels = Labels("her2", na=["failed"], classes=classes)
    words = pd.Series(["1+", "POS", "3+", "failed", "NA", np.nan, " Equivocal ", "0", 0.0])
    expected = ["0-1", "3+", "3+", "", "", "", "2+", "0-1", "0-1"]
    assert labels.words(words).tolist() == expected
    assert labels.order(expected) == ["0-1", "2+", "3+"]


def test_a_word_in_no_class_is_reported_with_its_count():
    labels = Labels("her2", classes={"neg": ["0"], "pos": ["3+"]})
    rows = _rows(["0", "3+", "2+", "2+"])
    with pytest.raises(StainsslError, match=r"'2\+' \(2\)"):
        labels.words(rows["her2"])
    assert "words in no class" in label_problems(labels, rows)[0]


@pytest.mark.parametrize(
    ("labels", "words", "order"),
    [
        (Labels("x"), ["positive", "negative"], ["negative", "positive"]),
        (Labels("x", classes={"positive": [], "negative": []}), ["positive", "negative"],
         ["negative", "positive"]),
        (Labels("x", positive="mutant"), ["wild type", "mutant"], ["wild type", "mutant"]),
        (Labels("x"), ["1", "0", ""], ["0", "1"]),
        (Labels("x"), ["10", "9", "b"], ["9", "10", "b"]),
    ],
)  # fmt: skip
def test_the_positive_of_two_classes_is_last(labels, words, order):
    assert labels.order(words) == order


def test_a_minus_is_a_class_if_classes_has_it():
    labels = Labels("x", classes={"negative": ["-"], "positive": ["+"]})
    assert labels.words(pd.Series(["-", "+", "?"])).tolist() == ["negative", "positive", ""]


def test_classes_that_differ_in_case_numbers_and_an_unknown_positive_are_problems():
    assert "only in case" in label_problems(Labels("her2"), _rows(["Pos", "pos", "neg"]))[0]
    numbers = _rows([str(i) for i in range(20)])
    assert "is it a number?" in label_problems(Labels("her2"), numbers)[0]
    assert "positive is" in label_problems(Labels("her2", positive="x"), _rows(["0", "1"]))[0]
    assert label_problems(Labels("her2"), _rows(["0", "1", "NA"])) == []


def test_the_summary_counts_classes_and_unknown_words():
    lines = label_summary(Labels("her2"), _rows(["0", "0", "1", "NA", "", "n/a"]))
    assert lines == [
        "classes: 0 (1 patient, 2 slides), 1 (1 patient, 1 slide)",
        "unknown: 'NA' (1 patient, 1 slide), 'n/a' (1 patient, 1 slide),"
        " empty (1 patient, 1 slide)",
    ]


def _task(**keys):
    task = {"level": "patient", "label": "her2", "cohorts": ["c"]}
    return parse({"cohorts": {"c": {"sheet": "s.csv"}}, "tasks": {"t": task | keys}}).tasks["t"]


def test_summary_suggests_na_for_codes_that_may_mean_unknown():
    assert any("'na'" in line for line in label_summary(Labels("her2"), _rows(["0", "1", "999"])))
    coded = Labels("her2", na=["999"])
    assert coded.words(pd.Series(["0", "999", 999.0])).tolist() == ["0", "", ""]


def test_config_accepts_numbers_as_words_and_refuses_ambiguous_classes():
    found = labels_of(_task(classes={"low": [0, "1+"], 3: []}, na=[9], positive=3))
    assert found == Labels("her2", ("9",), {"low": ["0", "1+"], "3": []}, "3")
    assert _task(classes={"Pos": ["pos"], "neg": []}).classes["Pos"] == ["pos"]
    with pytest.raises(StainsslError, match="under two classes"):
        _task(classes={"a": ["x"], "b": ["X"]})
    with pytest.raises(StainsslError, match="quotes"):
        _task(classes={True: ["x"], "b": []})
    with pytest.raises(StainsslError, match="not in 'classes'"):
        _task(classes={"a": [], "b": []}, positive="c")
