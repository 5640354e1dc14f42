"""Notices about encoders that changed training slides would train again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stainssl.config import Config, parse
from stainssl.plan.encoders import pretrain
from stainssl.plan.retraining import retraining_notices, write_trained_on


def _sheet(path: Path, *slides: str) -> None:
    splits = ["test" if slide.startswith("t") else "train" for slide in slides]
    rows = {"slide_id": slides, "patient_id": slides, "path": "x.svs", "split": splits}
    pd.DataFrame(rows).to_csv(path, index=False)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """An encoder that was trained on the slides a and b in 26 hours."""
    _sheet(tmp_path / "sheet.csv", "a", "b", "t")
    config = parse({
        "results": str(tmp_path / "results"),
        "cohorts": {"c": {"sheet": str(tmp_path / "sheet.csv")}},
        "tilings": {"default": {}},
        "encoders": {"own": {"method": "simclr", "train": {"cohorts": ["c"]}}},
    })  # fmt: skip
    paths = config.paths
    paths.model("own").mkdir(parents=True)
    write_trained_on(paths.checkpoints("own"), pretrain(config, "own").rows)
    times = config.results / "times" / "pretrain"
    times.mkdir(parents=True)
    (times / "own.tsv").write_text("s\th:m:s\n93600.0\t1 day, 2:00:00\n")
    return config


def test_there_is_no_notice_if_the_training_slides_are_the_same(
    config: Config, tmp_path: Path
) -> None:
    assert retraining_notices(config) == []
    _sheet(tmp_path / "sheet.csv", "a", "b", "t", "t2")
    assert retraining_notices(config) == []


def test_a_notice_has_the_changed_slides_the_training_time_and_advice(
    config: Config, tmp_path: Path
) -> None:
    _sheet(tmp_path / "sheet.csv", "a", "t", "new")
    (notice,) = retraining_notices(config)
    assert "encoders.own (own) will be trained again" in notice
    assert "1 new (new) and 1 gone (b)" in notice
    assert "took 1 d 02:00:00" in notice
    assert "frozen: true" in notice


def test_there_is_no_notice_for_a_frozen_encoder_or_one_without_a_model(
    config: Config, tmp_path: Path
) -> None:
    _sheet(tmp_path / "sheet.csv", "a", "b", "new")
    frozen = config.encoders["own"].model_copy(update={"frozen": True})
    assert retraining_notices(config.model_copy(update={"encoders": {"own": frozen}})) == []
    config.paths.model("own").rmdir()
    assert retraining_notices(config) == []
