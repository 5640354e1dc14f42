"""`cohort check --open` says of every slide of a cohort what the stage `tile` will find."""

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

SAME = ["slide_id", "status", "detail", "mpp", "mpp_source", "tissue_mm2", "tiles_kept", "content"]


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Three slides, the last of them cut, and a config of one part."""
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


def asked(folder: Path, threads: int = 2) -> Result:
    words = ["cohort", "check", "--config", str(folder / "config.yaml")]
    return CliRunner().invoke(
        app, [*words, "--open", str(folder / "seen"), "--threads", str(threads)]
    )


def test_every_slide_is_told_as_the_run_will_find_it(folder: Path) -> None:
    said = asked(folder)
    assert said.exit_code == 0, said.output
    assert "c: 2 ok, 1 truncated" in said.output
    assert "c: truncated: " in said.output.split("2 ok")[1]
    assert not (folder / "results").exists()
    config = load(folder / "config.yaml")
    run_stage("tile", config, "c", "all-0000")
    run = read_qc(config.paths.qc("c", "all-0000"))
    seen = pd.read_csv(folder / "seen" / "c" / "slides.csv", keep_default_na=False)
    expected = pd.read_csv(_as_csv(run, folder), keep_default_na=False)
    pd.testing.assert_frame_equal(seen[SAME], expected[SAME])
    pictures = sorted(path.stem for path in (folder / "seen" / "c" / "previews").rglob("*.png"))
    assert pictures == ["a", "b"]
    assert "truncated" in (folder / "seen" / "c" / "slides.html").read_text()
    assert (folder / "seen" / "c" / "tissue.png").exists()


def _as_csv(table: pd.DataFrame, folder: Path) -> Path:
    table.to_csv(folder / "qc.csv", index=False, float_format="%.6g")
    return folder / "qc.csv"


def test_too_many_bad_slides_are_a_problem_before_the_run(folder: Path) -> None:
    write_config(folder, max_bad_slides=0.0)
    said = asked(folder)
    assert said.exit_code == 1
    assert "1 of 3 slides are bad (1 truncated)" in str(said.exception)
    assert (folder / "seen" / "c" / "slides.html").exists()


def test_a_missing_slide_is_found_with_the_others_where_it_is_allowed(folder: Path) -> None:
    (folder / "b.svs").unlink()
    write_config(folder, on_missing="quarantine", max_bad_slides=1.0)
    said = asked(folder, threads=1)
    assert said.exit_code == 0, said.output
    assert "b: missing: " in said.output


def test_all_slides_bad_is_told_and_no_traceback(folder: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(folder / "sheet.csv", folder / f"{name}.svs")
        (folder / f"{name}.svs").write_text(f"not a slide {name}")
    write_config(folder, max_bad_slides=1.0)
    said = asked(folder)
    assert said.exit_code == 0, said.output
    assert "2 unsupported" in said.output or "2 unreadable" in said.output


def test_the_synthetic_cohort_is_not_opened_before_it_is_made(tmp_path: Path) -> None:
    config = {
        "results": str(tmp_path / "results"),
        "cohorts": {"d": {"demo": {"seed": 0, "patients": {"a": 2, "b": 2, "c": 2}}}},
        "tilings": {"default": {"mpp": 0.5, "size": 128}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    said = asked(tmp_path)
    assert said.exit_code == 0, said.output
    assert "nothing was opened" in said.output
