"""Pixel stores that belong to the tiles of a cohort."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from stainssl.cohort import stored_pixels, why_not_stored
from stainssl.config import Config, parse
from stainssl.view.viewer_data import ViewerData

PART = ("c", "all-0000")


def _config(folder: Path, pixels: str, **keys: Any) -> Config:
    sheet = folder / "c.csv"
    sheet.write_text("slide_id,patient_id,path\na,p,a.svs\n")
    cohort = {"sheet": str(sheet), "root": str(folder), "pixels": pixels}
    return parse({"results": str(folder / "results"), "cohorts": {"c": cohort}, **keys})


def _make(path: Path, time: float) -> None:
    path.mkdir(parents=True)
    os.utime(path, (time, time))


@pytest.mark.parametrize("pixels", ["store", "stream"])
def test_a_store_made_of_the_tiles_is_used(tmp_path: Path, pixels: str) -> None:
    config = _config(tmp_path, pixels)
    assert stored_pixels(config, *PART) is None
    _make(config.paths.tiles(*PART), 1e9)
    _make(config.paths.pixels(*PART), 2e9)
    assert stored_pixels(config, *PART) == config.paths.pixels(*PART)


def test_a_store_of_earlier_tiles_of_a_streamed_cohort_is_not_used(tmp_path: Path) -> None:
    config = _config(tmp_path, "stream")
    _make(config.paths.tiles(*PART), 2e9)
    _make(config.paths.pixels(*PART), 1e9)
    assert stored_pixels(config, *PART) is None


def test_the_key_by_which_tiles_are_not_stored(tmp_path: Path) -> None:
    removed = {"keep_pixels": False}
    assert why_not_stored(_config(tmp_path, "store"), "c") == ""
    assert why_not_stored(_config(tmp_path, "stream"), "c") == "cohorts.c.pixels: stream"
    assert "keep_pixels" in why_not_stored(_config(tmp_path, "store", slides=removed), "c")


def test_the_viewer_says_why_the_stain_of_a_slide_is_unknown(tmp_path: Path) -> None:
    def problem(pixels: str) -> str:
        return ViewerData(_config(tmp_path, pixels)).data("stain", "c", "a")["problem"]

    assert problem("stream") == "The tiles of a are not stored (cohorts.c.pixels: stream)."
    assert "has not run" in problem("store")
