"""`folds` writes the same bytes for the same sheet and refuses tasks that cannot be split."""

import pytest

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import read_folds
from stainssl.stages import run_stage
from tests.evaluation.world import make_config, sheet_of


def test_the_same_sheet_gives_the_same_bytes(tmp_path):
    config = make_config(tmp_path, sheet_of({"a": 6, "b": 6, "c": 4}))
    path = config.paths.folds("her2")
    run_stage("folds", config, "her2")
    first = path.read_bytes()
    path.unlink()
    run_stage("folds", config, "her2")
    assert path.read_bytes() == first
    assert first.splitlines()[0] == b"task,repeat,fold,patient_id,role"
    assert read_folds(path)["patient_id"].nunique() == 16


def test_classes_and_unknown_values_are_logged_once(tmp_path, caplog):
    sheet = sheet_of({"a": 6, "b": 6, "c": 4})
    sheet.loc[:2, "her2"] = "n/a"
    config = make_config(tmp_path, sheet)
    with caplog.at_level("INFO"):
        run_stage("folds", config, "her2")
    assert caplog.text.count("unknown: 'n/a' (3 patients, 3 slides)") == 1
    assert caplog.text.count("her2: classes: ") == 1


def test_a_tile_task_with_annotations_takes_its_split_from_the_sheet(tmp_path):
    config = make_config(tmp_path, sheet_of({"a": 6, "b": 6, "c": 4}))
    run_stage("folds", config, "tumor")
    made = read_folds(config.paths.folds("tumor"))
    assert set(made.loc[made["role"] == "test", "patient_id"]) == {"c0", "c1", "c2", "c3"}


def test_the_error_names_the_task_and_the_patients(tmp_path):
    sheet = sheet_of({"a": 6})
    sheet.loc[1, "patient_id"] = "a0"
    config = make_config(tmp_path, sheet)
    with pytest.raises(StainsslError, match=r"tasks\.her2: .*'her2'.*a0"):
        run_stage("folds", config, "her2")
    assert not config.paths.folds("her2").exists()


def test_fewer_patients_than_folds_is_refused(tmp_path):
    config = make_config(tmp_path, sheet_of({"a": 3}))
    with pytest.raises(StainsslError, match="fewer patients than folds"):
        run_stage("folds", config, "her2")
