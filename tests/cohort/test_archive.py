"""Missing slides whose pixels are stored are not needed; files dated in the future are reported."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pandas as pd
import pytest

from stainssl.cohort import check, dated_in_future, needed_files
from stainssl.config import Config, parse
from stainssl.stores.tiles import write_qc

SLIDES = ["a", "b", "c", "d"]  # two parts of two slides


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Both parts were tiled, when slide b was missing."""
    for name in SLIDES:
        (tmp_path / f"{name}.svs").touch()
    rows = [{"slide_id": s, "patient_id": s, "path": f"{s}.svs"} for s in SLIDES]
    pd.DataFrame(rows).to_csv(tmp_path / "sheet.csv", index=False)
    config = parse({
        "results": str(tmp_path / "results"), "slides": {"part_size": 2},
        "cohorts": {"c": {"sheet": str(tmp_path / "sheet.csv"), "root": str(tmp_path)}},
        "tilings": {"default": {"mpp": 0.5}},
    })  # fmt: skip
    paths = config.paths
    made_by = {"tiling": config.tilings["default"].model_dump(mode="json"), "reader": "auto"}
    for number in range(2):
        part = f"all-{number:04d}"
        status = ["ok", "missing" if number == 0 else "truncated"]
        qc = pd.DataFrame({"slide_id": SLIDES[2 * number :][:2], "status": status})
        write_qc(paths.qc("c", part), qc, made_by)
        for path in (paths.tiles("c", part), paths.pixels("c", part)):
            path.mkdir(parents=True)
    return config


def _delete(tmp_path: Path, *names: str) -> None:
    for name in names:
        (tmp_path / f"{name}.svs").unlink()


def test_slides_whose_pixels_are_stored_are_not_needed(config: Config, tmp_path: Path) -> None:
    _delete(tmp_path, "a", "c", "d")
    assert needed_files(config, "c").empty
    assert check(config) == []


def test_a_slide_that_was_missing_when_tiled_is_needed(config: Config, tmp_path: Path) -> None:
    _delete(tmp_path, "a", "b")
    assert needed_files(config, "c")["slide_id"].tolist() == ["b"]


def test_slides_without_stored_pixels_are_needed(config: Config, tmp_path: Path) -> None:
    _delete(tmp_path, "a", "c")
    config.paths.pixels("c", "all-0001").rmdir()
    assert needed_files(config, "c")["slide_id"].tolist() == ["c"]


def test_slides_are_needed_for_another_tiling_or_a_changed_part(
    config: Config, tmp_path: Path
) -> None:
    _delete(tmp_path, "a")
    tiling = config.tilings["default"].model_copy(update={"min_tissue": 0.9})
    other = config.model_copy(update={"tilings": {"default": tiling}})
    assert needed_files(other, "c")["slide_id"].tolist() == ["a"]
    assert any("a.svs does not exist" in problem for problem in check(other))
    sheet = (tmp_path / "sheet.csv").read_text().replace("b,b,b.svs", "new,new,b.svs")
    (tmp_path / "sheet.csv").write_text(sheet)
    assert needed_files(config, "c")["slide_id"].tolist() == ["a"]


def test_files_dated_in_the_future_are_reported(config: Config, tmp_path: Path) -> None:
    assert dated_in_future(config, "c") == []
    later = time.time() + 86_400
    os.utime(tmp_path / "c.svs", (later, later))
    (message,) = dated_in_future(config, "c")
    assert "1 files are dated in the future" in message
    assert str(tmp_path / "c.svs") in message
