"""Tasks with several labels: reading, completion within patients, balanced folds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stainssl.config import Config, Task, parse
from stainssl.errors import StainsslError
from stainssl.evaluation.kinds import labels_of
from stainssl.evaluation.multilabel import OF, join_labels, rarest, split_labels, strata

LABELS = ["er", "pr", "her2"]
WORDS = st.sampled_from(["neg", "pos", ""])


def _task(**keys: object) -> Task:
    given = {"level": "patient", "labels": LABELS, "cohorts": ["c"], **keys}
    return Task.model_validate(given)


def _rows(patients: int, seed: int = 0, unknown: float = 0.2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({"patient_id": [f"p{i:03d}" for i in range(patients)]})
    for label, share in zip(LABELS, (0.6, 0.4, 0.2), strict=True):
        words = np.where(rng.random(patients) < share, "pos", "neg").astype(object)
        words[rng.random(patients) < unknown] = "NA"
        rows[label] = words
    return rows.assign(slide_id=rows["patient_id"])


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=20))
@settings(deadline=None)
def test_split_labels_is_the_inverse_of_join_labels(rows):
    frame = pd.DataFrame(rows, dtype=object)
    words = join_labels([frame[i] for i in range(3)])
    assert ((words == "") == (frame == "").all(axis=1)).all()
    for i, column in enumerate(split_labels(words, 3)):
        assert column.tolist() == frame[i].tolist()


def test_a_label_known_for_one_slide_holds_for_the_patient():
    labels = labels_of(_task())
    rows = pd.DataFrame({
        "patient_id": ["a", "a", "a", "b"],
        "er": ["pos", "NA", "NA", "NA"], "pr": ["?", "neg", "NA", "pos"], "her2": ["NA"] * 4,
    })  # fmt: skip
    words = labels.of_patients(labels.words_of(rows), rows["patient_id"])
    er, pr, her2 = split_labels(words, 3)
    assert er.tolist() == ["pos", "pos", "", ""]  # no label of the third slide is known
    assert pr.tolist() == ["neg", "neg", "", "pos"]
    assert set(her2) == {""}


@given(st.integers(0, 1000), st.integers(2, 5))
@settings(deadline=None, max_examples=20)
def test_folds_are_balanced_by_the_label_with_the_rarest_class(seed, folds):
    split = _task(split={"kind": "cv", "folds": folds}).split
    rows = _rows(80, seed)
    known = rows[LABELS].replace("NA", None).apply(pd.Series.value_counts)
    assume(known.min(axis=None) >= folds)  # fewer are refused
    patients, made = labels_of(_task()).folds(rows, "patient", split, seed)
    assert set(patients["patient_id"]) == set(made["patient_id"])
    test = made[made["role"] == "test"].merge(patients, on="patient_id")
    first = min(LABELS, key=lambda label: rarest(patients[OF + label]))
    counts = test.groupby("fold")[OF + first].value_counts().unstack(fill_value=0)
    assert (counts.max() - counts.min() <= 1).all()
    for label in LABELS:  # and every label can be learnt and ranked
        assert (test[test[OF + label] != ""].groupby("fold")[OF + label].nunique() == 2).all()


def test_small_strata_are_merged_by_fewer_labels():
    rows = pd.DataFrame({"a": list("xxxxxxxyyy"), "b": list("uuuuuuvvvv")})
    found = strata(rows, ["a", "b"], 3)
    assert found.nunique() == 3
    assert found[6] == "x"  # the only patient with x and v
    assert len(set(found[:6])) == 1


def test_only_patients_without_any_known_label_are_left_out():
    rows = _rows(40)
    rows.loc[0, LABELS] = "NA"
    rows.loc[1, LABELS] = ["NA", "NA", "pos"]
    patients, _ = labels_of(_task()).folds(rows, "patient", _task().split, 0)
    assert "p000" not in set(patients["patient_id"])
    assert "p001" in set(patients["patient_id"])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"her2": "NA"}, "no slide has a known 'her2'"),
     ({"her2": "pos"}, "'her2', has one class only"),
     ({"her2": ["pos", "neg", "neg", "neg"] + ["neg"] * 36}, "'her2', has fewer patients than")],
)  # fmt: skip
def test_a_label_that_cannot_be_learnt_is_named(change, message):
    with pytest.raises(StainsslError, match=message):
        labels_of(_task()).folds(_rows(40).assign(**change), "patient", _task().split, 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"label": "er"}, "'labels', not both"), ({"labels": ["er"]}, "at least two columns"),
     ({"level": "tile"}, "labels need kind classification"),
     ({"kind": "regression"}, "labels need kind classification")],
)  # fmt: skip
def test_labels_is_refused_with_other_levels_kinds_and_a_single_column(keys, message):
    with pytest.raises(ValueError, match=message):
        _task(**keys)


def _config(**more: object) -> Config:
    return parse({
        "cohorts": {"c": {"sheet": "s.csv", "root": "."}}, "encoders": {"e": {"weights": "w"}},
        "tasks": {"r": {"level": "patient", "labels": LABELS, "cohorts": ["c"]}, **more},
        "heads": {"clam": {"kind": "clam"}, "mean": {"kind": "mean"}},
        "benchmarks": {"b": {"tasks": ["r"], "encoders": ["e"], "heads": ["mean"]}},
    })  # fmt: skip


def test_each_label_is_evaluated_as_a_task():
    config = _config()
    assert list(config.per_label_tasks()) == ["r.er", "r.pr", "r.her2"]
    assert config.per_label_tasks()["r.pr"].label == "pr"
    assert config.sources()["r.pr"] == ("r", "pr")


def test_a_task_named_like_a_per_label_task_is_refused():
    other = {"level": "patient", "label": "er", "cohorts": ["c"]}
    with pytest.raises(StainsslError, match=r"2 of them have results under .r\.er."):
        _config(**{"r.er": other})


def test_clam_is_refused_for_several_labels():
    data = _config().model_dump()
    data["benchmarks"]["b"]["heads"] = ["clam"]
    with pytest.raises(StainsslError, match=r"clam, .* tasks\.r is of several labels"):
        parse(data)
