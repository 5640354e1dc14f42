"""The original tables of two releases."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stainssl.datasets import load

TCGA = "nationwidechildrens.org_clinical_patient_brca.txt"


@pytest.fixture
def tables(real_data: Path) -> Path:
    return real_data / "tables"


def test_the_stage_table_of_camelyon17_has_500_slides_of_five_centres(
    tables: Path, tmp_path: Path
) -> None:
    shutil.copy(tables / "stage_labels.csv", tmp_path)
    (tmp_path / "patient_004_node_4.tif").touch()
    found = load("camelyon17", tmp_path)
    assert found.problems == []
    rows = found.sheet
    assert len(rows) == 500
    assert rows["site"].value_counts().to_dict() == {f"centre-{i}": 100 for i in range(5)}
    assert rows["pn_stage"].str.startswith("pN").all()
    assert (rows["tumor"] == "0").equals(rows["stage"] == "negative")
    assert rows.loc[rows["exclude"] == "", "slide_id"].tolist() == ["patient_004_node_4"]
    assert "499 of 500 labelled files are missing" in found.warnings[0]


def test_the_clinical_table_of_tcga_gives_her2_by_ihc_then_fish(tables: Path) -> None:
    from stainssl.datasets.tcga_her2 import RELEASE, _table, her2_of

    table = _table(tables / TCGA)
    assert len(table) == 1097
    by_ihc = her2_of(table, tables / TCGA, RELEASE.chosen({"equivocal": "none"}))
    assert by_ihc.value_counts().to_dict() == {"0": 564, "": 369, "1": 164}
    with_fish = her2_of(table, tables / TCGA, RELEASE.chosen({}))
    resolved = (with_fish != by_ihc).sum()
    equivocal = (table["her2_status_by_ihc"] == "Equivocal").sum()
    assert equivocal == 179
    assert 0 < resolved <= equivocal
