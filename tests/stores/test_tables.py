"""Tables keep their types, and tables of another kind are refused."""

from pathlib import Path

import pandas as pd
import pytest

from stainssl.errors import StainsslError
from stainssl.stores.tables import read_table, without_formulas, write_table
from stainssl.stores.tiles import TILE_COLUMNS, read_tiles, write_tiles


def test_an_empty_tile_table_keeps_its_columns(tmp_path: Path) -> None:
    write_tiles(tmp_path / "t.parquet", pd.DataFrame(columns=list(TILE_COLUMNS)), {})
    back = read_tiles(tmp_path / "t.parquet")
    assert list(back) == list(TILE_COLUMNS)
    assert back["x"].dtype == "int64"
    assert len(back) == 0


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "q.parquet", pd.DataFrame({"a": [1]}), "qc", {})
    with pytest.raises(StainsslError, match="expected tiles"):
        read_tiles(tmp_path / "q.parquet")


def test_an_incomplete_file_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "q.parquet", pd.DataFrame({"a": range(1000)}), "qc", {})
    data = (tmp_path / "q.parquet").read_bytes()
    (tmp_path / "q.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(StainsslError, match="incomplete"):
        read_table(tmp_path / "q.parquet", "qc")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StainsslError, match="is missing"):
        read_table(tmp_path / "none.parquet", "qc")


def test_spreadsheet_formulas_are_escaped() -> None:
    frame = pd.DataFrame({"site": ["=1+1", "@x", "leeds", ""], "mpp": [-1.0, 2.0, 3.0, 4.0]})
    found = without_formulas(frame)
    assert found["site"].tolist() == ["'=1+1", "'@x", "leeds", ""]
    assert found["mpp"].equals(frame["mpp"])
