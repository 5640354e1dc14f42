"""XLSX files are read in strict and transitional format; other files are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainssl.datasets.xlsx import read_xlsx
from stainssl.errors import StainsslError
from tests.datasets.miniature import OOXML, write_xlsx

ROWS: list[list[object]] = [["Patient", "", "Responder"], ["a", 3, "responder"], ["b", "", "no"]]


@pytest.mark.parametrize("kind", OOXML)
def test_strict_and_transitional_files_are_read_the_same(tmp_path: Path, kind: str) -> None:
    write_xlsx(tmp_path / "a.xlsx", {"One": [["x"], ["y"]], "Two": ROWS}, kind)
    found = read_xlsx(tmp_path / "a.xlsx", sheet="Two")
    assert found.to_dict("list") == {"Patient": ["a", "b"], "Responder": ["responder", "no"]}
    assert read_xlsx(tmp_path / "a.xlsx").to_dict("list") == {"x": ["y"]}  # the first sheet


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1).filter(
    lambda text: text.strip() == text
)


@given(st.lists(st.lists(texts, min_size=30, max_size=30), min_size=1, max_size=4))
def test_any_text_is_read_back_from_any_column(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    path = tmp_path_factory.mktemp("xlsx") / "a.xlsx"
    header = [f"c{i}" for i in range(30)]  # past column Z
    write_xlsx(path, {"S": [list(header), *map(list, rows)]})
    assert read_xlsx(path).to_numpy().tolist() == rows


def test_numbers_lose_only_a_trailing_zero(tmp_path: Path) -> None:
    write_xlsx(tmp_path / "a.xlsx", {"S": [["n"], [61], [4.0], [0.25], ["007"]]})
    assert read_xlsx(tmp_path / "a.xlsx")["n"].tolist() == ["61", "4", "0.25", "007"]


def test_the_lowest_filled_cell_of_several_header_rows_is_the_column_name(tmp_path: Path) -> None:
    rows: list[list[object]] = [["", "clinical", "pCR"], ["ID", "age", ""], ["061", 46, 1]]
    write_xlsx(tmp_path / "a.xlsx", {"S": rows})
    for found in (
        read_xlsx(tmp_path / "a.xlsx", headers=2),
        read_xlsx(tmp_path / "a.xlsx", first=r"\d+"),
    ):
        assert found.to_dict("list") == {"ID": ["061"], "age": ["46"], "pCR": ["1"]}


def test_files_that_are_not_xlsx_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    with pytest.raises(StainsslError, match="does not exist"):
        read_xlsx(path)
    path.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(StainsslError, match="is not an XLSX file"):
        read_xlsx(path)
    write_xlsx(path, {"S": [["only a header"]]})
    with pytest.raises(StainsslError, match="no rows below"):
        read_xlsx(path)
    with pytest.raises(StainsslError, match="no sheet 'T'; found: S"):
        read_xlsx(path, sheet="T")


def test_an_entity_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    write_xlsx(path, {"S": ROWS})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(
            "xl/sharedStrings.xml",
            '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><sst><si><t>&c;</t></si></sst>',
        )
    with pytest.raises(StainsslError, match="is not an XLSX file"):
        read_xlsx(path)
