"""`stainssl slide` reports of a slide what the stage `tile` finds on it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from stainssl.cli import app
from stainssl.errors import StainsslError
from stainssl.stages import run_stage, slide
from stainssl.stores.tiles import read_qc
from tests.slides.conftest import stained, write_svs
from tests.stages.test_tile import PART, cohort


@pytest.fixture
def picture(rng: np.random.Generator) -> np.ndarray:
    return stained(rng, (1024, 1280))[0]


def _qc_row(folder: Path, **columns: object) -> dict[str, object]:
    """The row that `tile` writes for `s.svs` with the default tiling."""
    config = cohort(folder, [{"slide_id": "s", "path": "s.svs", **columns}], root=str(folder))
    default = type(config.tilings["default"])()
    config = config.model_copy(update={"tilings": {"default": default}})
    run_stage("tile", config, "c", PART)
    return dict(read_qc(config.paths.qc("c", PART)).iloc[0])


def test_the_report_agrees_with_the_stage_tile(tmp_path: Path, picture: np.ndarray) -> None:
    path = write_svs(tmp_path / "s.svs", picture)
    lines = list(slide.run(path, picture=tmp_path / "out.png"))
    row = _qc_row(tmp_path)
    report = dict(line.split(": ", 1) for line in lines)
    assert report["reader"] == "tiff (vendor: aperio)"
    assert report["size"] == "1280×1024 px"
    assert report["level 0"] == "1280×1024 px, downsample 1"
    assert report["µm/px"].startswith(f"{row['mpp']:.4g} ({row['mpp_source']}; stated: format")
    assert report["bounds"] == "the whole slide"
    assert report["brightfield"] == "yes"
    assert report["tissue"].startswith(f"{row['tissue_mm2']:.4g} mm²")
    assert report["tiles"].startswith(f"{row['tiles_kept']} of ")
    assert report["status"] == "ok"
    assert Image.open(tmp_path / "out.png").width > 100


def test_mpp_given_by_the_user_takes_precedence(tmp_path: Path, picture: np.ndarray) -> None:
    path = write_svs(tmp_path / "s.svs", picture, mpp=None)
    lines = list(slide.run(path, mpp=0.25))
    assert any(line.startswith("µm/px: 0.25 (--mpp") for line in lines)


@pytest.mark.parametrize("fault", ["cut", "text", "no-mpp"])
def test_the_error_for_a_bad_slide_is_that_of_the_stage(
    tmp_path: Path, picture: np.ndarray, fault: str
) -> None:
    path = tmp_path / "s.svs"
    write_svs(path, picture, mpp=None if fault == "no-mpp" else 0.5)
    if fault == "cut":
        os.truncate(path, int(path.stat().st_size * 0.7))
    elif fault == "text":
        path.write_text("no slide")
    row = _qc_row(tmp_path)
    with pytest.raises(StainsslError) as caught:
        list(slide.run(path, picture=tmp_path / "out.png"))
    remedy = " Here that is --mpp." if fault == "no-mpp" else ""
    assert str(caught.value) == f"{path}: {row['status']}: {row['detail']}{remedy}"
    assert not (tmp_path / "out.png").exists()


def test_a_slide_that_is_not_brightfield_is_an_error(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    dark = rng.integers(0, 12, (1024, 1024, 3), dtype=np.uint8)
    lines: list[str] = []
    with pytest.raises(StainsslError, match="not-brightfield"):
        for line in slide.run(write_svs(tmp_path / "s.svs", dark)):
            lines.append(line)
    assert lines[-1] == "brightfield: no"


def test_the_command_prints_the_report_and_a_missing_file_is_an_error(
    tmp_path: Path, picture: np.ndarray
) -> None:
    path = write_svs(tmp_path / "s.svs", picture)
    done = CliRunner().invoke(app, ["slide", str(path)])
    assert done.exit_code == 0, done.output
    assert "status: ok" in done.output
    with pytest.raises(StainsslError, match=r"missing: .*gone\.svs does not exist"):
        list(slide.run(tmp_path / "gone.svs"))


def test_real_slides(real_data: Path) -> None:
    lines = list(slide.run(real_data / "slides" / "CMU-1-Small-Region.svs"))
    assert "objective: 20x" in lines
    assert lines[-1].startswith("status: ok")
