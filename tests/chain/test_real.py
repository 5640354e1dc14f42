"""The workflow on real slides and real tiles."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from stainssl.stores.embeddings import open_embeddings
from tests.chain.conftest import HERE, Workflow

pytestmark = pytest.mark.chain


def test_real_slides_have_embeddings_or_a_status(real_data: Path, tmp_path: Path) -> None:
    for name in ("slides.csv", "slides.yaml"):
        shutil.copy(HERE / "real" / name, tmp_path)
    (tmp_path / "real-data").symlink_to(real_data)
    Workflow(tmp_path, "slides.yaml").run()
    folder = tmp_path / "results/cohorts/real/default"
    status = pd.read_csv(folder / "slides.csv", index_col="slide_id")["status"]
    assert status["cmu-1"] == "ok"
    assert status["tcga"] == "ok"
    assert status["boxes"] == "absurd-mpp"
    assert status["dicom"] == "too-small"  # 16 × 16 px
    assert set(status[["unreadable", "unopenable", "broken"]]) <= {"unreadable", "unsupported"}
    store = open_embeddings(folder / "embeddings/random/all-0000.zarr")
    for slide in ("cmu-1", "tcga"):
        assert store.valid[store.rows(slide)].sum() > 20


def _breakhis(real_data: Path, folder: Path) -> None:
    """Unpack the tiles and write a sheet of a third of them: a row per tile, patient, label."""
    with zipfile.ZipFile(real_data / "breakhis-tiles.zip") as archive:
        archive.extractall(folder / "breakhis")
    tiles = pd.read_csv(real_data / "breakhis-tiles.csv", dtype=str)[::3]
    sheet = tiles.assign(
        slide_id=tiles["path"].str.replace("/", "-").str.rsplit(".", n=1).str[0],
        patient_id=tiles["patient"],
    )
    sheet[["slide_id", "patient_id", "path", "label"]].to_csv(folder / "breakhis.csv", index=False)


def test_real_patches_end_in_a_table(real_data: Path, tmp_path: Path) -> None:
    _breakhis(real_data, tmp_path)
    shutil.copy(HERE / "real" / "patches.yaml", tmp_path)
    Workflow(tmp_path, "patches.yaml").run()
    predictions = pd.read_parquet(
        tmp_path / "results/tasks/malignant/simclr/probe/predictions.parquet"
    )
    assert predictions["patient_id"].nunique() == 18
    assert len(predictions) == 710
    folds = pd.read_csv(tmp_path / "results/tasks/malignant/folds.csv")
    assert folds.query("role == 'test'").groupby("patient_id").size().eq(1).all()
    table = pd.read_csv(tmp_path / "results/benchmarks/breakhis/table.csv")
    assert {"stain-invariant", "simclr", "random"} <= set(table["encoder"])
