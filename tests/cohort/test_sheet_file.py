"""Sheets with any usual separator, encoding and column names are read, or refused with a remedy."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainssl import cohort as cohorts
from stainssl.cohort.sheet_file import decimal_points, read_sheet_file
from stainssl.config import Config, parse
from stainssl.datasets.xlsx import read_rows
from stainssl.errors import StainsslError
from tests.datasets.miniature import write_xlsx

HEADER = ["slide_id", "patient_id", "path", "split", "her2", "age"]
ROWS = [
    ["s0", "p0", "s0.svs", "train", "negative", "61"],
    ["s1", "p1", "s1, left.svs", "train", "positive", "48"],
    ["s2", "p2", "s2.svs", "test", "größer", "70"],
]
KNOWN = ("slide_id", "patient_id", "path", "site", "split", "mpp", "exclude")


def text_of(rows: list[list[str]], separator: str) -> str:
    quoted = [[f'"{c}"' if separator in c else c for c in row] for row in rows]
    return "".join(separator.join(row) + "\n" for row in quoted)


def config_of(folder: Path, sheet: Path | str, **cohort: object) -> Config:
    if isinstance(sheet, str):
        (folder / "sheet.csv").write_text(sheet, encoding="utf-8")
        sheet = folder / "sheet.csv"
    return parse({"cohorts": {"c": {"sheet": str(sheet), "root": str(folder)} | cohort}})


def error_of(folder: Path, sheet: str, **cohort: object) -> str:
    with pytest.raises(StainsslError) as caught:
        cohorts.read_sheet(config_of(folder, sheet, **cohort), "c")
    return str(caught.value)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_separator_and_encoding_are_found(tmp_path: Path, separator: str, encoding: str) -> None:
    path = tmp_path / "sheet.csv"
    path.write_bytes(text_of([HEADER, *ROWS], separator).encode(encoding))
    found = read_sheet_file(path, {}, KNOWN)
    assert list(found.rows.columns) == HEADER
    assert found.rows.to_numpy().tolist() == ROWS
    assert list(found.rows.index) == [2, 3, 4]
    assert bool(found.notes) == (encoding == "cp1252")


def test_xlsx_is_read_like_csv(tmp_path: Path) -> None:
    write_xlsx(tmp_path / "a.xlsx", {"Slides": [HEADER, *ROWS], "Legend": [["x"]]})
    found = read_sheet_file(tmp_path / "a.xlsx", {}, KNOWN)
    assert found.rows.to_numpy().tolist() == ROWS
    assert "first sheet 'Slides' was read, not 'Legend'" in found.notes[0]


def test_invalid_cell_references_are_refused(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "a.xlsx"
    write_xlsx(path, {"S": [HEADER, *ROWS]})
    for cell in ("XFDXFDXFD1", "AAAA1", "11"):
        mutant = tmp_path / f"{cell}.xlsx"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(mutant, "w") as new:
            for name in old.namelist():
                text = old.read(name)
                if "worksheets" in name:
                    assert b'r="A1"' in text
                    text = text.replace(b'r="A1"', f'r="{cell}"'.encode())
                new.writestr(name, text)
        with pytest.raises(StainsslError, match="invalid cell reference"):
            read_rows(mutant)


def test_blank_rows_and_outer_spaces_are_removed_and_line_numbers_kept(tmp_path: Path) -> None:
    text = "\ufeffslide_id, patient_id ,path,exclude\n\ns0,p0 ,s0.svs,\n,,,\n s1 ,p1,s1.svs,maybe\n"
    assert "line 5: exclude is 'maybe'" in error_of(tmp_path, text)
    rows = cohorts.read_sheet(config_of(tmp_path, text.replace("maybe", "no")), "c")
    assert rows[["slide_id", "patient_id"]].to_numpy().tolist() == [["s0", "p0"], ["s1", "p1"]]


def test_another_spelling_of_a_required_column_is_suggested(tmp_path: Path) -> None:
    text = "Slide ID;patient_id;path;HER2\ns0;p0;s0.svs;1\n"
    assert "columns: {slide_id: 'Slide ID'}" in error_of(tmp_path, text)
    config = config_of(tmp_path, text, columns={"slide_id": "Slide ID", "her2": "HER2"})
    assert list(cohorts.read_sheet(config, "c")["her2"]) == ["1"]
    assert "not a column; did you mean 'Slide ID'" in error_of(
        tmp_path, text, columns={"slide_id": "SlideID"}
    )
    assert "; did you mean 'slide'?" in error_of(tmp_path, "slide,patient_id,path\ns0,p0,s0.svs\n")


@pytest.mark.parametrize("spelling", ["MPP", "Exclude", "Site", "Split", "Mpp "])
def test_another_spelling_of_an_optional_column_is_refused(tmp_path: Path, spelling: str) -> None:
    standard = spelling.strip().lower()
    text = f"slide_id,patient_id,path,{spelling}\ns0,p0,s0.svs,1\n"
    assert f"columns: {{{standard}: '{spelling.strip()}'}}" in error_of(tmp_path, text)
    both = f"slide_id,patient_id,path,{standard},{spelling}\ns0,p0,s0.svs,1,1\n"
    assert "mean the same" in error_of(tmp_path, both)
    other = cohorts.read_sheet(config_of(tmp_path, text, columns={standard: None}), "c")
    assert list(other[spelling.strip()]) == ["1"]


def test_column_names_can_be_exchanged(tmp_path: Path) -> None:
    text = "slide_id,patient_id,path,site,hospital\ns0,p0,s0.svs,left breast,north\n"
    config = config_of(tmp_path, text, columns={"site": "hospital", "body_site": "site"})
    rows = cohorts.read_sheet(config, "c")
    assert rows[["site", "body_site"]].to_numpy().tolist() == [["north", "left breast"]]


def test_duplicate_columns_are_refused(tmp_path: Path) -> None:
    text = "slide_id,patient_id,path,her2,her2\ns0,p0,s0.svs,0,1\n"
    assert "column 'her2' occurs 2 times (columns 4, 5)" in error_of(tmp_path, text)


def test_a_column_named_part_has_no_special_meaning(tmp_path: Path) -> None:
    lines = [f"s{i},p{i},s{i}.svs,{'train' if i < 4 else 'test'},{'AB'[i % 2]}" for i in range(6)]
    config = config_of(tmp_path, "slide_id,patient_id,path,split,part\n" + "\n".join(lines))
    assert set(cohorts.parts(config, "c")) == {"train-0000", "test-0000"}
    assert list(cohorts.read_sheet(config, "c")["part"]) == list("ABABAB")


def test_parts_from_the_sheet_have_one_split_and_a_valid_name(tmp_path: Path) -> None:
    head = "slide_id,patient_id,path,split,stainssl_part\n"
    good = head + "s0,p0,s0.svs,train,one\ns1,p1,s1.svs,test,two\n"
    assert set(cohorts.parts(config_of(tmp_path, good), "c")) == {"one", "two"}
    assert "rows of splits 'test', 'train'" in error_of(tmp_path, good.replace("two", "one"))
    assert "stainssl_part is '../x'" in error_of(tmp_path, good.replace("two", "../x"))
    assert "stainssl_part is empty" in error_of(tmp_path, good.replace("two", ""))


def test_equal_errors_of_many_lines_are_one_message(tmp_path: Path) -> None:
    lines = [f"s {i},p{i},s{i}.svs" for i in range(70)]
    found = error_of(tmp_path, "slide_id,patient_id,path\n" + "\n".join(lines))
    assert found.count("\n") == 0
    assert "lines 2, 3, 4, 5, 6 … (70 in all)" in found


def test_unquoted_separators_and_open_quotes_are_refused(tmp_path: Path) -> None:
    head = "slide_id,patient_id,path,age\n"
    assert "line(s) 2 have more cells" in error_of(tmp_path, head + "s0,p0,s0.svs,1,5\n")
    assert "is not a table" in error_of(tmp_path, head + 's0,p0,"s0.svs,1\ns1,p1,s1.svs,2\n')


def test_ids_that_mean_missing_or_differ_only_in_case_are_refused(
    tmp_path: Path,
) -> None:
    head = "slide_id,patient_id,path\n"
    for missing_word in ("NA", "nan", "None"):
        found = error_of(tmp_path, f"{head}s0,{missing_word},s0.svs\n")
        assert f"patient_id is '{missing_word}': it reads as 'unknown'" in found
    found = error_of(tmp_path, head + "s0,P1,s0.svs\ns1,p1,s1.svs\n")
    assert "patient_id 'P1' and 'p1' differ only in case" in found
    long = "s" * 252
    assert "slide_id is" in error_of(tmp_path, f"{head}{long},p0,s0.svs\n")


def test_unicode_is_normalized_except_in_paths(tmp_path: Path) -> None:
    nfd = unicodedata.normalize("NFD", "Köln")
    text = f"slide_id,patient_id,path,site\ns0,p0,{nfd}.svs,{nfd}\ns1,p1,Köln.svs,Köln\n"
    rows = cohorts.read_sheet(config_of(tmp_path, text), "c")
    assert list(rows["site"]) == ["Köln", "Köln"]
    assert rows["path"].nunique() == 2


def test_a_sheet_with_all_rows_excluded_is_refused(tmp_path: Path) -> None:
    text = "slide_id,patient_id,path,exclude\ns0,p0,s0.svs,x\n"
    assert "all 1 rows are excluded" in error_of(tmp_path, text)


@given(st.lists(st.decimals(-99, 99, places=2, allow_nan=False), min_size=1, max_size=8))
def test_decimal_commas_are_replaced_by_points(numbers: list[object]) -> None:
    text = [f"{number:.2f}" for number in numbers]
    unknown = ["", "NaN", "n/a", "-"]
    column = pd.Series([*(t.replace(".", ",") for t in text), *unknown])
    found = decimal_points(column)
    assert found is not None
    assert list(found) == [*text, *unknown]


@pytest.mark.parametrize("cells", [["1,234", "2,000"], ["1,5", "about 2"], ["1.5", "2"], [""]])
def test_columns_without_decimal_commas_are_unchanged(cells: list[str]) -> None:
    assert decimal_points(pd.Series(cells)) is None


def test_a_sheet_of_german_excel(tmp_path: Path) -> None:
    text = "sep=;\nslide_id;patient_id;path;mpp;age\ns0;p0;s0.svs;0,25;61,5\ns1;p1;s1.svs;;48\n"
    config = config_of(tmp_path, text)
    rows = cohorts.read_sheet(config, "c")
    assert rows["mpp"].iloc[0] == 0.25
    assert list(rows["age"]) == ["61.5", "48"]
    assert any("'age' are read as points" in note for note in cohorts.sheet_notes(config, "c"))
