"""Exported tables: the written slides, and labels as tasks read them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stainssl.evaluation.labels import Labels
from stainssl.export import clam, stamp
from stainssl.export.tables import tables_of

SHEET = pd.DataFrame(
    [
        ("s0", "p0", "0", "1"), ("s1", "p1", "", "2"), ("s2", "p1", "1", "2"),
        ("s3", "p2", "1", "3"), ("blank", "p3", "0", "1"), ("s4", "p4", "n/a", ""),
        ("s5", "p0", "1", "2"),
    ],
    columns=["slide_id", "patient_id", "her2", "grade"],
)  # fmt: skip
WRITTEN = [f"s{i}" for i in range(6)]


def test_tables_list_the_written_slides(tmp_path: Path) -> None:
    tables = tables_of(SHEET, WRITTEN, {"her2": Labels("her2")})
    clam.write_tables(tmp_path, tables)
    stamp.write_tables(tmp_path, tables)
    dataset = pd.read_csv(tmp_path / "dataset.csv", dtype=str)
    assert set(dataset["slide_id"]) == set(WRITTEN)
    files = pd.read_csv(tmp_path / "slide.csv", dtype=str)["FILENAME"]
    assert set(files) == {f"{slide}.h5" for slide in WRITTEN}
    clinical = pd.read_csv(tmp_path / "clini.csv", dtype=str, keep_default_na=False)
    assert clinical["PATIENT"].tolist() == ["p0", "p1", "p2", "p4"]


def test_a_patient_has_the_highest_known_class_of_all_slides(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = tables_of(SHEET, WRITTEN, {"her2": Labels("her2")}).patients.set_index("patient_id")
    assert found["her2"].to_dict() == {"p0": "1", "p1": "1", "p2": "1", "p4": ""}
    assert found["grade"].to_dict() == {"p0": "1", "p1": "2", "p2": "3", "p4": ""}
    assert "'grade': 1 patients have several values" in caplog.text


def test_the_label_of_a_slide_without_features_is_used() -> None:
    found = tables_of(SHEET, ["s1"], {"her2": Labels("her2")}).patients
    assert found.to_numpy().tolist() == [["p1", "1", "2"]]


def test_labels_are_the_classes_of_the_task_in_both_tables() -> None:
    labels = Labels("her2", classes={"neg": ["0"], "pos": ["1"]})
    tables = tables_of(SHEET, WRITTEN, {"her2": labels})
    assert tables.slides["her2"].tolist() == ["neg", "", "pos", "pos", "", "pos"]
    assert tables.slides["grade"].tolist() == ["1", "2", "2", "3", "", "2"]
    raw = tables_of(SHEET, WRITTEN, {}).slides
    assert raw["her2"].tolist() == ["0", "", "1", "1", "", "1"]
    found = tables.patients.set_index("patient_id")["her2"]
    assert found.to_dict() == {"p0": "pos", "p1": "pos", "p2": "pos", "p4": ""}
