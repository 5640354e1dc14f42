"""`cohort check --open` reports for each slide what the stage `tile` will find."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

from stainssl.cli import app
from stainssl.config import load
from stainssl.stages import run_stage
from stainssl.stores.tiles import read_qc
from tests.slides.conftest import stained, write_svs

COLUMNS = [
    "slide_id",
    "status",
    "detail",
    "mpp",
    "mpp_source",
    "tissue_mm2",
    "tiles_kept",
    "content",
]


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Three slides, of which the last is truncated, and a config with one part."""
    picture = stained(rng, (1024, 1280))[0]
    for name in ("a", "b", "c"):
        write_svs(tmp_path / f"{name}.svs", np.roll(picture, ord(name), axis=1))
    whole = (tmp_path / "c.svs").read_bytes()
    (tmp_path / "c.svs").write_bytes(whole[: len(whole) // 2])
    rows = [{"slide_id": n, "patient_id": f"p{n}", "path": f"{n}.svs"} for n in ("a", "b", "c")]
    pd.DataFrame(rows).to_csv(tmp_path / "sheet.csv", index=False)
    write_config(tmp_path)
    return tmp_path


def write_config(folder: Path, **slides: object) -> Path:
    config = {
        "results": str(folder / "results"),
        "slides": slides,
        "cohorts": {"c": {"sheet": str(folder / "sheet.csv"), "root": str(folder)}},
        "tilings": {"default": {"mpp": 0.5, "size": 128}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def run_check(folder: Path, threads: int = 2) -> Result:
    command = ["cohort", "check", "--config", str(folder / "config.yaml")]
    return CliRunner().invoke(
        app, [*command, "--open", str(folder / "seen"), "--threads", str(threads)]
    )


def test_report_agrees_with_the_stage_tile(folder: Path) -> None:
    result = run_check(folder)
    assert result.exit_code == 0, result.output
    assert "c: 2 ok, 1 truncated" in result.output
    assert "c: truncated: " in result.output.split("2 ok")[1]
    assert not (folder / "results").exists()
    config = load(folder / "config.yaml")
    run_stage("tile", config, "c", "all-0000")
    run = read_qc(config.paths.qc("c", "all-0000"))
    seen = pd.read_csv(folder / "seen" / "c" / "slides.csv", keep_default_na=False)
    expected = pd.read_csv(_as_csv(run, folder), keep_default_na=False)
    pd.testing.assert_frame_equal(seen[COLUMNS], expected[COLUMNS])
    pictures = sorted(path.stem for path in (folder / "seen" / "c" / "previews").rglob("*.png"))
    assert pictures == ["a", "b"]
    assert "truncated" in (folder / "seen" / "c" / "slides.html").read_text()
    assert (folder / "seen" / "c" / "tissue.png").exists()


def _as_csv(table: pd.DataFrame, folder: Path) -> Path:
    table.to_csv(folder / "qc.csv", index=False, float_format="%.6g")
    return folder / "qc.csv"


def test_too_many_bad_slides_fail_the_check(folder: Path) -> None:
    write_config(folder, max_bad_slides=0.0)
    result = run_check(folder)
    assert result.exit_code == 1
    assert "1 of 3 slides are bad (1 truncated)" in str(result.exception)
    assert (folder / "seen" / "c" / "slides.html").exists()


def test_a_missing_slide_is_listed_if_quarantine_is_set(folder: Path) -> None:
    (folder / "b.svs").unlink()
    write_config(folder, on_missing="quarantine", max_bad_slides=1.0)
    result = run_check(folder, threads=1)
    assert result.exit_code == 0, result.output
    assert "b: missing: " in result.output


def test_a_cohort_of_only_bad_slides_is_reported_without_an_exception(folder: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(folder / "sheet.csv", folder / f"{name}.svs")
        (folder / f"{name}.svs").write_text(f"not a slide {name}")
    write_config(folder, max_bad_slides=1.0)
    result = run_check(folder)
    assert result.exit_code == 0, result.output
    assert "2 unsupported" in result.output or "2 unreadable" in result.output


def test_a_demo_cohort_that_is_not_rendered_yet_is_not_opened(tmp_path: Path) -> None:
    config = {
        "results": str(tmp_path / "results"),
        "cohorts": {"d": {"demo": {"seed": 0, "patients": {"a": 2, "b": 2, "c": 2}}}},
        "tilings": {"default": {"mpp": 0.5, "size": 128}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    result = run_check(tmp_path)
    assert result.exit_code == 0, result.output
    assert "nothing was opened" in result.output
