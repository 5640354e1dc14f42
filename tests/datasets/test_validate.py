"""Missing, duplicate and unexpected rows and files of a release are reported."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainssl.datasets.release import FolderContents, Imported, Options, Release
from stainssl.datasets.validate import validated


def validate_rows(
    rows: list[dict[str, str]], files: list[str] | None = None, **arguments: object
) -> Imported:
    frame = pd.DataFrame(rows)

    def never_called(root: Path, options: Options) -> FolderContents:
        raise AssertionError

    release = Release("r", "A release", "slides", never_called, **arguments)  # type: ignore[arg-type]
    return validated(
        release, FolderContents(frame, frame["path"].tolist() if files is None else files)
    )


def row(number: int, **columns: str) -> dict[str, str]:
    base = {"slide_id": f"s{number}", "patient_id": f"p{number}", "path": f"f/s{number}.svs"}
    return base | columns


def test_a_complete_folder_has_no_problems_or_warnings() -> None:
    found = validate_rows([row(1), row(2)], published={"slides": 2, "patients": 2})
    assert (found.problems, found.warnings) == ([], [])
    assert found.sheet["exclude"].tolist() == ["", ""]


def test_rows_without_files_are_kept_but_excluded() -> None:
    found = validate_rows(
        [row(1), row(2), row(3)], ["f/s1.svs", "f/s3.svs"], published={"slides": 3}
    )
    assert found.sheet["exclude"].tolist() == ["", "true", ""]
    assert "1 of 3 labelled files are missing (a partial download?)" in found.warnings[0]
    assert "f/s2.svs" in found.warnings[0]
    assert "slides 2 of 3" in found.warnings[1]
    assert not found.problems


def test_files_without_labels_are_reported_and_left_out() -> None:
    found = validate_rows([row(1)], ["f/s1.svs", "f/other.svs"])
    assert found.warnings == ["1 files have no label and are left out: f/other.svs"]
    assert found.sheet["slide_id"].tolist() == ["s1"]


def test_duplicate_rows_count_once_and_contradictory_rows_are_a_problem() -> None:
    found = validate_rows([row(1, her2="0"), row(1, her2="0"), row(2, her2="1")])
    assert "1 rows are duplicates and count once: s1" in found.warnings
    assert found.sheet["slide_id"].tolist() == ["s1", "s2"]
    found = validate_rows([row(1, her2="0"), row(1, her2="1")])
    assert found.problems == ["1 names have rows that differ: s1. Keep one of each"]


def test_a_file_in_two_folders_is_reported() -> None:
    found = validate_rows([row(1)], ["f/s1.svs", "g/s1.svs"])
    assert "1 files are in several folders, one is read: f/s1.svs = g/s1.svs" in found.warnings


def test_an_unexpected_class_is_a_problem() -> None:
    rows = [row(1, her2="1"), row(2, her2="equivocal"), row(3, her2="")]
    found = validate_rows(rows, classes={"her2": frozenset({"0", "1"})})
    (problem,) = found.problems
    assert "'her2' has classes that are not in the release: equivocal (s2); known: 0, 1" in problem


def test_published_counts_are_compared_with_existing_files() -> None:
    rows = [row(1, split="train"), row(2, split="test"), row(3, split="test")]
    published = {"slides": 3, "split=test": 2, "patients": 3}
    assert validate_rows(rows, published=published).warnings == []
    found = validate_rows(rows, ["f/s1.svs", "f/s2.svs"], published=published)
    assert found.warnings[-1] == (
        "not the published counts: slides 2 of 3; split=test 1 of 2; patients 2 of 3"
    )


def test_an_empty_folder_is_a_problem() -> None:
    assert "is this the right folder?" in validate_rows([row(1)], []).problems[0]


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["train", "val", "test"])),
        min_size=1, max_size=20,
    )
)  # fmt: skip
def test_a_patient_in_several_splits_stays_only_in_the_strictest(
    rows: list[tuple[int, str]],
) -> None:
    split_rows = [
        row(i, patient_id=f"p{patient}", split=split) for i, (patient, split) in enumerate(rows)
    ]
    found = validate_rows(split_rows)
    used = found.sheet[found.sheet["exclude"] == ""]
    assert used.groupby("patient_id")["split"].nunique().eq(1).all()
    assert set(used["patient_id"]) == {f"p{patient}" for patient, _ in rows}
    test_patients = {f"p{patient}" for patient, split in rows if split == "test"}
    assert set(used.loc[used["split"] == "test", "patient_id"]) == test_patients
    has_several_splits = len({(patient, split) for patient, split in rows}) > len(
        {patient for patient, _ in rows}
    )
    assert any("several splits" in warning for warning in found.warnings) == has_several_splits


def test_unknown_options_and_values_are_refused() -> None:
    def never_called(root: Path, options: Options) -> FolderContents:
        raise AssertionError

    release = Release(
        "r", "", "slides", never_called, options={"tiles": ("roi", "all"), "id": ("ID",)}
    )
    assert release.chosen({"id": "Case"}) == {"tiles": "roi", "id": "Case"}
    with pytest.raises(ValueError, match="no option 'tile'; known: tiles, id"):
        release.chosen({"tile": "all"})
    with pytest.raises(ValueError, match="tiles is 'half'; it takes roi, all"):
        release.chosen({"tiles": "half"})
