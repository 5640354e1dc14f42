"""Slides may be put away once their pixels are made; dates that cannot be true are told."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pandas as pd
import pytest

from stainssl.cohort import check, dated_in_future, needed_files
from stainssl.config import Config, parse
from stainssl.stores.tiles import write_qc

SLIDES = ["a", "b", "c", "d"]  # two parts of two


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Both parts were tiled; slide b was missing then."""
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


def _gone(tmp_path: Path, *names: str) -> None:
    for name in names:
        (tmp_path / f"{name}.svs").unlink()


def test_slides_whose_pixels_are_made_are_needed_no_more(config: Config, tmp_path: Path) -> None:
    _gone(tmp_path, "a", "c", "d")
    assert needed_files(config, "c").empty
    assert check(config) == []


def test_one_that_was_missing_all_along_is_still_wanted(config: Config, tmp_path: Path) -> None:
    _gone(tmp_path, "a", "b")
    assert needed_files(config, "c")["slide_id"].tolist() == ["b"]


def test_without_the_pixels_they_are_needed(config: Config, tmp_path: Path) -> None:
    _gone(tmp_path, "a", "c")
    config.paths.pixels("c", "all-0001").rmdir()
    assert needed_files(config, "c")["slide_id"].tolist() == ["c"]


def test_another_tiling_or_a_new_slide_needs_them(config: Config, tmp_path: Path) -> None:
    _gone(tmp_path, "a")
    tiling = config.tilings["default"].model_copy(update={"min_tissue": 0.9})
    other = config.model_copy(update={"tilings": {"default": tiling}})
    assert needed_files(other, "c")["slide_id"].tolist() == ["a"]
    assert any("a.svs does not exist" in sentence for sentence in check(other))
    sheet = (tmp_path / "sheet.csv").read_text().replace("b,b,b.svs", "new,new,b.svs")
    (tmp_path / "sheet.csv").write_text(sheet)
    assert needed_files(config, "c")["slide_id"].tolist() == ["a"]


def test_files_dated_in_the_future(config: Config, tmp_path: Path) -> None:
    assert dated_in_future(config, "c") == []
    later = time.time() + 86_400
    os.utime(tmp_path / "c.svs", (later, later))
    (told,) = dated_in_future(config, "c")
    assert "1 files are dated in the future" in told
    assert str(tmp_path / "c.svs") in told
