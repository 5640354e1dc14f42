"""Checks of a sheet report all problems; parts do not change when a sheet grows."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainssl import cohort as cohorts
from stainssl.cohort import sheet
from stainssl.config import Config, parse
from stainssl.errors import StainsslError


def _config(tmp_path: Path, rows: list[dict], **more: object) -> Config:
    pd.DataFrame(rows).to_csv(tmp_path / "sheet.csv", index=False)
    cohort = {"sheet": str(tmp_path / "sheet.csv"), "root": str(tmp_path)}
    slides = {"part_size": 2} | more.pop("slides", {})  # type: ignore[operator]
    return parse({"cohorts": {"c": cohort | more.pop("cohort", {})}, "slides": slides, **more})  # type: ignore[operator]


def _row(number: int, **columns: object) -> dict:
    row = {"slide_id": f"s{number}", "patient_id": f"p{number}", "path": f"s{number}.svs"}
    return row | columns


def _problems(config: Config) -> str:
    return "\n".join(cohorts.check(config))


def _touch(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"s{number}.svs").touch()


def test_parts_are_blocks_of_one_split_in_sheet_order(tmp_path: Path) -> None:
    splits = ["train", "test", "train", "train", "test"]
    config = _config(tmp_path, [_row(i, split=s) for i, s in enumerate(splits)])
    found = {name: list(rows["slide_id"]) for name, rows in cohorts.parts(config, "c").items()}
    assert found == {"train-0000": ["s0", "s2"], "test-0000": ["s1", "s4"], "train-0001": ["s3"]}


@given(st.lists(st.sampled_from(["train", "test", ""]), min_size=1, max_size=12))
def test_an_appended_slide_changes_only_the_last_part_of_its_split(
    tmp_path_factory: pytest.TempPathFactory, splits: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("sheet")
    rows = [_row(i, split=s) for i, s in enumerate(splits)]
    before = cohorts.parts(_config(folder, rows), "c")
    after = cohorts.parts(_config(folder, [*rows, _row(99, split="test")]), "c")
    changed = [name for name in after if name not in before or not after[name].equals(before[name])]
    assert len(changed) == 1
    assert changed[0].startswith("test-")


def _sizes(config: Config) -> list[int]:
    return [len(rows) for rows in cohorts.parts(config, "c").values()]


def test_automatic_part_size_increases_with_the_number_of_slides(tmp_path: Path) -> None:
    few = _config(tmp_path, [_row(i) for i in range(100)], slides={"part_size": "auto"})
    assert _sizes(few) == [4] * 16 + [8] * 4 + [4]
    many = _config(tmp_path, [_row(i) for i in range(10_000)], slides={"part_size": "auto"})
    assert _sizes(many) == [4] * 16 + [8] * 24 + [16] * 48 + [32] * 280 + [16]
    patches = _config(
        tmp_path, [_row(i) for i in range(5000)], slides={"part_size": "auto"},
        cohort={"kind": "patches"},
    )  # fmt: skip
    assert _sizes(patches) == [256] * 16 + [512, 392]


@given(st.integers(1, 1100), st.sampled_from(["slides", "patches"]))
def test_parts_of_automatic_size_do_not_change_when_a_sheet_grows(rows: int, kind: str) -> None:
    frame = pd.DataFrame({"split": ["train"] * rows + ["test"]})
    before = sheet._name_parts(frame, "auto", kind)
    after = sheet._name_parts(pd.concat([frame, frame.tail(1)]), "auto", kind)
    assert after.iloc[:-1].tolist() == before.tolist()
    assert before.iloc[:rows].is_monotonic_increasing


def test_an_excluded_slide_does_not_change_the_other_parts(tmp_path: Path) -> None:
    rows = [_row(i) for i in range(4)]
    rows[0]["exclude"] = "true"
    found = cohorts.parts(_config(tmp_path, rows), "c")
    assert {name: list(part["slide_id"]) for name, part in found.items()} == {
        "all-0000": ["s1"],
        "all-0001": ["s2", "s3"],
    }


def test_all_problems_of_a_sheet_are_reported_at_once(tmp_path: Path) -> None:
    rows = [
        _row(0, slide_id="../evil", mpp=""),
        _row(1, slide_id="a b", mpp=""),
        _row(2, slide_id="x/y", mpp="half"),
        _row(3, slide_id="twin", mpp="-1"),
        _row(4, slide_id="twin", mpp="0.25"),
        _row(5, path="", mpp=""),
    ]
    found = _problems(_config(tmp_path, rows))
    for expected in (
        "line 2: slide_id is '../evil'",
        "line 3: slide_id is 'a b'",
        "line 4: slide_id is 'x/y'",
        "line 4: mpp is 'half'",
        "line 5: mpp is '-1'",
        "slide_id 'twin' is in lines 5, 6",
        "line 7: path",
    ):
        assert expected in found, found


def test_a_missing_column_is_reported_with_the_columns_found(tmp_path: Path) -> None:
    found = _problems(_config(tmp_path, [{"slide": "a", "patient_id": "p", "path": "a.svs"}]))
    assert "column 'slide_id' is missing; found: slide, patient_id, path" in found


def test_missing_columns_are_reported_beside_a_similar_one(tmp_path: Path) -> None:
    found = _problems(_config(tmp_path, [{"Slide ID": "a", "Patient": "p", "Datei": "a.svs"}]))
    assert "set columns: {slide_id: 'Slide ID'}" in found
    assert "missing: patient_id, path; found: Slide ID, Patient, Datei" in found
    assert "missing: slide_id" not in found


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    rows = [_row(0, split="train"), _row(1, split="test", patient_id="p0")]
    assert "patient 'p0' is in splits 'test', 'train'" in _problems(_config(tmp_path, rows))


def test_missing_files_are_errors_unless_quarantined(tmp_path: Path) -> None:
    rows = [_row(0), _row(1)]
    _touch(tmp_path, 1)
    found = _problems(_config(tmp_path, rows))
    assert "slide 's1'" in found
    assert "on_missing: quarantine" in found
    assert not cohorts.check(_config(tmp_path, rows, slides={"on_missing": "quarantine"}))


def test_a_missing_root_is_one_problem_even_in_quarantine(tmp_path: Path) -> None:
    config = _config(
        tmp_path,
        [_row(0), _row(1)],
        slides={"on_missing": "quarantine"},
        cohort={"root": str(tmp_path / "gone")},
    )
    assert len(cohorts.check(config)) == 1
    assert "is its disk mounted" in _problems(config)


def _task(**keys: object) -> dict:
    return {"tasks": {"t": {"level": "patient", "label": "y", "cohorts": ["c"]} | keys}}


def test_a_missing_label_column_is_reported_with_the_nearest_name(tmp_path: Path) -> None:
    _touch(tmp_path, 2)
    config = _config(tmp_path, [_row(0, yy=1), _row(1, yy=0)], **_task())
    assert "has no column 'y'; did you mean 'yy'" in _problems(config)


def test_a_single_class_and_too_few_patients_are_reported(tmp_path: Path) -> None:
    _touch(tmp_path, 6)
    one_class = _config(tmp_path, [_row(i, y=1) for i in range(6)], **_task())
    assert "tasks.t" in _problems(one_class)
    few = _config(tmp_path, [_row(i, y=i % 2) for i in range(6)], **_task(split={"folds": 5}))
    assert "tasks.t" in _problems(few)
    enough = _config(tmp_path, [_row(i, y=i % 2) for i in range(6)], **_task(split={"folds": 3}))
    assert _problems(enough) == ""


def test_tile_labels_of_slides_need_annotations(tmp_path: Path) -> None:
    _touch(tmp_path, 2)
    config = _config(tmp_path, [_row(0), _row(1)], **_task(level="tile"))
    assert "set cohorts.c.annotations" in _problems(config)


def test_an_empty_training_split_is_reported(tmp_path: Path) -> None:
    _touch(tmp_path, 2)
    encoder = {"method": "simclr", "train": {"cohorts": ["c"], "splits": ["training"]}}
    config = _config(tmp_path, [_row(i, split="train") for i in range(2)], encoders={"e": encoder})
    assert "splits found: train" in _problems(config)


def test_a_frozen_encoder_without_weights_is_reported(tmp_path: Path) -> None:
    _touch(tmp_path, 1)
    config = _config(
        tmp_path, [_row(0)], encoders={"e": {"method": "random", "frozen": True}},
        results=str(tmp_path / "r"),
    )  # fmt: skip
    assert "encoders.e: frozen, and" in _problems(config)


def test_an_empty_or_missing_sheet_is_refused(tmp_path: Path) -> None:
    config = _config(tmp_path, [_row(0)])
    (tmp_path / "sheet.csv").write_bytes(b"")
    assert "it is empty" in _problems(config)
    (tmp_path / "sheet.csv").unlink()
    with pytest.raises(StainsslError, match="does not exist"):
        cohorts.read_sheet(config, "c")


def test_an_external_cohort_needs_the_label_and_no_training_patients(tmp_path: Path) -> None:
    _touch(tmp_path, 8)
    config = _config(tmp_path, [_row(i, y=i % 2) for i in range(6)], **_task(split={"folds": 2}))
    pd.DataFrame([_row(5, z=1), _row(7, z=0)]).to_csv(tmp_path / "other.csv", index=False)
    data = config.model_dump(mode="json")
    data["cohorts"]["o"] = {"sheet": str(tmp_path / "other.csv"), "root": str(tmp_path)}
    data["tasks"]["t"]["external"] = ["o"]
    found = _problems(parse(data))
    assert "(external) has no column 'y'" in found
    assert "1 patients of o have the ids of training patients: p5" in found
    data["tasks"]["t"]["external"] = ["c"]
    with pytest.raises(StainsslError, match="c cannot be both in cohorts and external"):
        parse(data)
    data["tasks"]["t"] |= {"external": ["o"], "level": "tile"}
    with pytest.raises(StainsslError, match="for tasks of level slide or patient"):
        parse(data)


def test_words_for_an_unknown_mpp_are_read_as_missing(tmp_path: Path) -> None:
    _touch(tmp_path, 2)
    config = _config(tmp_path, [_row(0, mpp="NA", exclude="NA"), _row(1, mpp="0.5", exclude="")])
    rows = cohorts.read_sheet(config, "c")
    assert rows["mpp"].isna().tolist() == [True, False]
    assert _problems(config) == ""


def test_leave_one_out_is_refused_with_metrics_that_rank_patients(tmp_path: Path) -> None:
    _touch(tmp_path, 8)
    rows = [_row(i, y=str(i % 2)) for i in range(8)]
    alone = {"split": {"kind": "leave-one-out"}}
    assert "kind: cv" in _problems(_config(tmp_path, rows, **_task(**alone)))
    classified = _task(**alone, metrics=["balanced_accuracy"])
    assert _problems(_config(tmp_path, rows, **classified)) == ""


def test_classes_and_unknown_labels_of_a_task_are_counted(tmp_path: Path) -> None:
    _touch(tmp_path, 9)
    rows = [_row(i, y=["0", "3+", "n/a"][i % 3]) for i in range(9)]
    task = _task(classes={"low": ["0"], "high": ["3+"]}, split={"folds": 3})
    lines = cohorts.task_summary(_config(tmp_path, rows, **task), "t")
    assert lines[0] == "classes: low (3 patients, 3 slides), high (3 patients, 3 slides)"
    assert lines[1] == "unknown: 'n/a' (3 patients, 3 slides)"
    assert "3 of 3 folds test fewer than two" in lines[2]


def test_checks_log_nothing_and_the_summary_has_each_note_once(tmp_path: Path, caplog) -> None:
    """Folds are drawn for several checks, and unknown values are reported once per task."""
    _touch(tmp_path, 18)
    words = ["0", "1", "NA"]
    rows = [
        _row(i, y=words[i % 3], months="" if i < 3 else str(i), event="01"[i % 2])
        for i in range(18)
    ]
    config = _config(tmp_path, rows, **_task(split={"folds": 2}))
    data = config.model_dump(mode="json")
    own = {"level": "patient", "cohorts": ["c"], "split": {"folds": 2}}
    data["tasks"] |= {
        "several": {**own, "labels": ["y", "event"]},
        "number": {**own, "kind": "regression", "label": "months"},
        "time": {**own, "kind": "survival", "time": "months", "event": "event"},
    }
    config = parse(data)
    with caplog.at_level("INFO"):
        assert _problems(config) == ""
        summary = [line for name in config.tasks for line in cohorts.task_summary(config, name)]
    assert caplog.text == ""
    assert sum("unknown: 'NA' (6 patients, 6 slides)" in line for line in summary) == 2
    assert "unknown: empty (3 patients, 3 slides)" in summary
    assert "unknown: months empty (3 patients, 3 slides)" in summary


def test_a_clinical_column_that_differs_between_slides_of_a_patient_is_reported(
    tmp_path: Path,
) -> None:
    _touch(tmp_path, 12)
    rows = [
        _row(i, patient_id=f"p{i // 2}", y=str(i // 2 % 2), age=str(50 + (i == 3)), grade="2")
        for i in range(12)
    ]
    keys = {"clinical": ["age", "grade"], "split": {"folds": 2}}
    summary = cohorts.task_summary(_config(tmp_path, rows, **_task(**keys)), "t")
    assert [line for line in summary if line.startswith("clinical: ")] == [
        "clinical: 'age' differs between slides of 1 patient(s), such as p1: the value of the first"
        " slide is used."
    ]
    keys["level"] = "slide"
    summary = cohorts.task_summary(_config(tmp_path, rows, **_task(**keys)), "t")
    assert not [line for line in summary if line.startswith("clinical: ")]


def test_words_among_the_numbers_of_a_clinical_column_are_reported(tmp_path: Path) -> None:
    _touch(tmp_path, 12)
    ages = ["51,5", "NaN", "", "n/a", *map(str, range(40, 47)), "about 60"]
    rows = [
        _row(i, y=str(i % 2), age=age, stage=stage)
        for i, (age, stage) in enumerate(zip(ages, ["I", "2"] * 6, strict=True))
    ]
    keys = {"clinical": ["age", "stage"], "split": {"folds": 2}}
    lines = cohorts.task_summary(_config(tmp_path, rows, **_task(**keys)), "t")
    (found,) = [line for line in lines if line.startswith("clinical: ")]
    assert "'age' has numbers and the words '51,5', 'about 60'" in found
    rows[-1]["age"] = "60"
    lines = cohorts.task_summary(_config(tmp_path, rows, **_task(**keys)), "t")
    assert not [line for line in lines if line.startswith("clinical: ")]


def test_sensitivity_needs_two_classes(tmp_path: Path) -> None:
    _touch(tmp_path, 9)
    rows = [_row(i, y="abc"[i % 3]) for i in range(9)]
    task = _task(metrics=["sensitivity"], split={"folds": 3})
    assert "need two classes" in _problems(_config(tmp_path, rows, **task))
