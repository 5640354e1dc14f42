"""Folds: by patient, stratified, reproducible; impossible splits are refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from stainssl.config import Task
from stainssl.errors import StainsslError
from stainssl.evaluation.folds import (
    check_folds,
    class_name,
    class_order,
    each_fold,
    fold_notes,
    folds_of,
    make_folds,
    patient_table,
    patients_of,
    ranking_problem,
    read_folds,
    stratified_folds,
)


def _problems(slides: pd.DataFrame, level: str, label: str, task: Task) -> list[str]:
    try:
        folds_of(slides, level, label, task.split)
    except StainsslError as error:
        return str(error).split("\n")
    return []


def _patients(n: int = 20, **columns: list) -> pd.DataFrame:
    base = {
        "patient_id": [f"p{i:02d}" for i in range(n)],
        "label": [str(i % 2) for i in range(n)],
        "site": ["abc"[i % 3] for i in range(n)],
        "split": ["test" if i % 4 == 0 else "train" for i in range(n)],
    }
    return pd.DataFrame(base | columns)


@settings(max_examples=60, deadline=None)
@given(
    strata=st.lists(st.sampled_from("cab"), min_size=6, max_size=70),
    folds=st.integers(2, 6),
    seed=st.integers(0, 2**31 - 1),
)
@pytest.mark.filterwarnings("ignore:The least populated class:UserWarning")
def test_stratified_folds_equal_those_of_scikit_learn(strata, folds, seed):
    rows = np.array(strata)
    assume(np.unique(rows, return_counts=True)[1].max() >= folds)  # otherwise scikit-learn refuses
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    expected = np.empty(len(rows), int)
    for fold, (_, test) in enumerate(splitter.split(rows, rows)):
        expected[test] = fold
    np.testing.assert_array_equal(stratified_folds(rows, folds, seed), expected)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(8, 60),
    folds=st.integers(2, 4),
    repeats=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_every_patient_is_tested_once_per_repeat_and_has_one_role_per_fold(n, folds, repeats, seed):
    patients = _patients(n)
    made = make_folds(patients, kind="cv", folds=folds, repeats=repeats, seed=seed)
    tests = made[made["role"] == "test"]
    assert (tests.groupby(["repeat", "patient_id"]).size() == 1).all()
    assert len(tests) == n * repeats
    assert not made.duplicated(["repeat", "fold", "patient_id"]).any()
    assert len(made) == n * folds * repeats
    label = patients.set_index("patient_id")["label"]
    for _, _, role in each_fold(made):
        assert len(set(label[sorted(role["train"])])) == 2
        assert abs(np.mean(label[sorted(role["test"])] == "1") - 0.5) < 0.34


def test_the_same_seed_gives_the_same_folds_and_another_seed_other_folds():
    one, same, other = (make_folds(_patients(), kind="cv", seed=s) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(one, same)
    assert not one.equals(other)


def test_stratification_balances_sites():
    patients = _patients(60)
    made = make_folds(patients, kind="cv", folds=5, stratify=["site"])
    site = patients.set_index("patient_id")["site"]
    for _, _, role in each_fold(made):
        assert site[sorted(role["test"])].value_counts().to_dict() == {"a": 4, "b": 4, "c": 4}


def test_the_sheets_split_is_kept_and_a_fifth_of_training_is_validation():
    made = make_folds(_patients(), kind="sheet")
    role = made.set_index("patient_id")["role"]
    expected = _patients().set_index("patient_id")["split"]
    assert ((role == "test") == (expected == "test")).all()
    assert (role == "val").sum() == 3


def test_the_sheets_validation_patients_are_kept():
    split = ["val" if i in (1, 2) else "test" if i % 4 == 0 else "train" for i in range(20)]
    made = make_folds(_patients(split=split), kind="sheet").set_index("patient_id")
    assert made["role"].tolist() == split


def test_leave_one_out_tests_each_site_once():
    made = make_folds(_patients(), kind="leave-one-out", group="site")
    site = _patients().set_index("patient_id")["site"]
    tested = [set(site[sorted(role["test"])]) for _, _, role in each_fold(made)]
    assert tested == [{"a"}, {"b"}, {"c"}]


def test_one_class_only_is_refused_with_the_counts():
    with pytest.raises(StainsslError, match=r"one class only.*1: 20"):
        make_folds(_patients(label=["1"] * 20), kind="cv")


def test_fewer_patients_of_a_class_than_folds_is_refused_with_advice():
    label = ["1"] * 3 + ["0"] * 17
    with pytest.raises(StainsslError, match=r"folds \(5\).*1: 3.*at most 3 folds.*'classes'"):
        make_folds(_patients(label=label), kind="cv", folds=5)


def test_a_patient_with_two_roles_in_a_fold_is_refused_by_name(tmp_path):
    made = make_folds(_patients(), kind="sheet")
    leaked = pd.concat([made, made.iloc[[3]].assign(role="val")])
    with pytest.raises(StainsslError, match="p03"):
        check_folds(leaked)
    leaked.assign(task="t").to_csv(tmp_path / "folds.csv")
    with pytest.raises(StainsslError, match=r"folds\.csv.*p03"):
        read_folds(tmp_path / "folds.csv")


def test_a_patient_in_two_splits_or_sites_is_refused_by_name():
    slides = _patients().assign(slide_id=range(20), patient_id=["x", "x", *"abcdefghijklmnopqr"])
    with pytest.raises(StainsslError, match=r"'split'.*: x\."):
        patients_of(slides, "patient", "label", kind="sheet")
    with pytest.raises(StainsslError, match=r"'site'.*: x\."):
        patients_of(
            slides.assign(label="1"), "patient", "label", kind="leave-one-out", group="site"
        )


def test_slides_of_a_patient_must_have_one_label_at_level_patient():
    slides = pd.DataFrame({"patient_id": ["x", "x", "y"], "her2": ["0", "1", "0"]})
    with pytest.raises(StainsslError, match=r"'her2'.*: x\."):
        patient_table(slides, "her2", level="patient")
    assert patient_table(slides, "her2", level="slide")["label"].tolist() == ["1", "0"]


def test_patients_with_an_unknown_label_are_left_out():
    slides = pd.DataFrame({"patient_id": list("uvwxyz"), "her2": ["", None, np.nan, 1.0, "1", "0"]})
    found = patient_table(slides, "her2", level="patient")
    assert found["patient_id"].tolist() == ["x", "y", "z"]


def test_a_missing_label_column_is_refused():
    with pytest.raises(StainsslError, match="no column 'her2'"):
        patient_table(_patients(), "her2", level="patient")


@pytest.mark.parametrize(
    ("split", "label", "message"),
    [
        ({"kind": "cv", "folds": 15}, "label", "fewer patients than folds"),
        ({"kind": "sheet"}, "nothing", "no column 'nothing'"),
        ({"kind": "leave-one-out", "group": "one"}, "label", "needs at least two values"),
        ({"kind": "cv"}, "label", None),
        ({"kind": "leave-one-out", "group": "site"}, "label", None),
    ],
)
def test_impossible_splits_are_reported(split, label, message):
    task = Task(level="patient", label=label, cohorts=["c"], split=split)
    found = _problems(_patients(one="x"), "patient", label, task)
    assert found == [] if message is None else message in found[0]


def test_an_unknown_split_and_a_missing_test_split_are_refused():
    with pytest.raises(StainsslError, match="'hold-out'"):
        make_folds(_patients(split=["train"] * 19 + ["hold-out"]), kind="sheet")
    with pytest.raises(StainsslError, match="with split test"):
        make_folds(_patients(split=["train"] * 20), kind="sheet")


def test_class_name_does_not_depend_on_the_type_of_a_value():
    assert [class_name(v) for v in (1.0, 1, "1", "1.0", np.float32(1), True)] == ["1"] * 6
    assert [class_name(v) for v in (None, np.nan, "", "HER2+", 0.5)] == ["", "", "", "HER2+", "0.5"]
    assert class_order(["10", "9", "b", "a", "", "9"]) == ["9", "10", "a", "b"]


def test_patients_who_all_have_tiles_of_both_classes_are_split_without_stratification():
    rows = [(f"p{i}", str(y), "train" if i < 3 else "test") for i in range(5) for y in (0, 1)]
    slides = pd.DataFrame(rows, columns=["patient_id", "tumor", "split"])
    slides["slide_id"] = range(len(slides))
    task = Task(level="tile", label="tumor", cohorts=["c"], split={"kind": "sheet"})
    assert _problems(slides, "tile", "tumor", task) == []
    folds = make_folds(patients_of(slides, "tile", "tumor", kind="sheet"), kind="sheet")
    assert set(folds.loc[folds["role"] == "test", "patient_id"]) == {"p3", "p4"}


def test_patients_who_all_have_a_slide_of_the_highest_class_can_be_split():
    stages = ["negative", "itc", "negative", "macro", "negative", "negative"]
    slides = pd.DataFrame({"patient_id": list("aabbcc"), "stage": stages, "site": list("xxyyzz")})
    task = Task(
        level="slide",
        label="stage",
        cohorts=["c"],
        split={"kind": "leave-one-out", "group": "site"},
    )
    assert _problems(slides, "slide", "stage", task) == []
    alone = slides.assign(stage="negative")
    assert "one class only" in _problems(alone, "slide", "stage", task)[0]


def test_a_split_without_two_classes_in_any_fold_is_a_ranking_problem():
    patients = _patients()
    one_by_one = make_folds(patients, kind="leave-one-out")
    assert "kind: cv" in ranking_problem(patients, one_by_one)
    assert ranking_problem(patients, make_folds(patients, kind="cv")) is None
    assert ranking_problem(patients.assign(label=""), one_by_one) is None


def test_folds_with_fewer_than_two_patients_of_a_class_are_counted():
    patients = _patients(10)
    assert fold_notes(patients, make_folds(patients, kind="cv", folds=2)) == []
    assert "5 of 5 folds" in fold_notes(patients, make_folds(patients, kind="cv", folds=5))[0]
