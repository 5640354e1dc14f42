"""A part whose only slide is bad: every stage accepts a part without tiles."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from stainssl.cohort import parts
from stainssl.config import Config, parse
from stainssl.demo import make
from stainssl.stages import export, run_stage
from stainssl.stores.embeddings import open_embeddings
from tests.stages.trained import save_encoder

PART = "train-0002"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two parts of six slides and one of a single unreadable slide; all embedded."""
    folder = tmp_path_factory.mktemp("empty-part")
    make(folder / "clinic", 3, {"a": 6, "b": 6}, processes=1, side_px=512)
    sheet = pd.read_csv(folder / "clinic" / "slides.csv", dtype=str).iloc[:12]
    sheet["patient_id"] = [f"p{i}" for i in range(12)]
    sheet["her2"] = [str(i % 2) for i in range(12)]
    bad = sheet.iloc[[0]].assign(slide_id="bad", path="slides/bad.svs", patient_id="bad")
    pd.concat([sheet, bad]).to_csv(folder / "sheet.csv", index=False)
    (folder / "clinic/slides/bad.svs").write_bytes(b"no slide")
    split = {"kind": "cv", "folds": 2}
    truth = folder / "clinic/truth/{slide_id}.geojson"
    (folder / "features").mkdir()
    config = parse({
        "results": str(folder / "results"),
        "slides": {"part_size": 6, "max_bad_slides": 0.2},
        "cohorts": {"clinic": {"sheet": str(folder / "sheet.csv"), "root": str(folder / "clinic"),
                               "annotations": str(truth)}},
        "tilings": {"default": {"mpp": 0.5, "size": 64, "min_tissue": 0.3}},
        "encoders": {
            "enc": {"weights": f"local-dir:{save_encoder(folder / 'enc' / 'model')}"},
            "files": {"features": f"trident:{folder / 'features'}"},
            "own": {"method": "stain-invariant", "backbone": "test_resnet", "input_size": 64,
                    "train": {"cohorts": ["clinic"], "splits": ["train"]}, "steps": 2,
                    "batch_size": 8},
        },
        "tasks": {"tumor": {"level": "tile", "label": "tumor", "cohorts": ["clinic"],
                            "split": split},
                  "her2": {"level": "patient", "label": "her2", "cohorts": ["clinic"],
                           "split": split}},
        "heads": {"mean": {"kind": "mean", "epochs": 2}},
        "benchmarks": {"main": {"tasks": ["tumor", "her2"], "encoders": ["enc"],
                                "heads": ["mean"]}},
    })  # fmt: skip
    for part in parts(config, "clinic"):
        run_stage("tile", config, "clinic", part)
        run_stage("pixels", config, "clinic", part)
        run_stage("label", config, "clinic", part)
        run_stage("embed", config, "clinic", "enc", part)
    for task in config.tasks:
        run_stage("folds", config, task)
    return config


def test_the_embeddings_of_the_part_are_empty(config: Config) -> None:
    assert list(parts(config, "clinic")) == ["train-0000", "train-0001", PART]
    paths = config.paths
    assert len(open_embeddings(paths.embeddings("clinic", "enc", PART))) == 0
    assert len(open_embeddings(paths.embeddings("clinic", "enc", "train-0000"))) > 0


def test_statuses_gate_and_embedded(config: Config) -> None:
    run_stage("statuses", config, "clinic")
    run_stage("gate", config, "clinic")
    run_stage("embedded", config, "clinic", "enc")
    slides = pd.read_csv(config.paths.embedded("clinic", "enc"))
    assert slides.set_index("slide_id")["tiles"]["bad"] == 0


def test_probe_mil_robustness_and_benchmark(config: Config) -> None:
    run_stage("probe", config, "tumor", "enc")
    run_stage("mil", config, "her2", "enc", "mean")
    run_stage("robustness", config, "enc")
    run_stage("benchmark", config, "main")
    assert config.paths.benchmark("main").joinpath("table.csv").exists()


def test_target_and_pretrain(config: Config) -> None:
    run_stage("target", config, "own")
    run_stage("pretrain", config, "own")
    assert config.paths.model("own").exists()


def test_export(config: Config, tmp_path: Path) -> None:
    for tool in ("clam", "trident", "stamp"):
        export.run(config, tool, "clinic", "enc", tmp_path / tool)
        assert any((tmp_path / tool).rglob("*.h5"))


def test_import_of_a_part_without_feature_files(config: Config) -> None:
    folder = Path(config.encoders["files"].features.removeprefix("trident:"))
    for rows in list(parts(config, "clinic").values())[:2]:
        for slide in rows["slide_id"]:
            with h5py.File(folder / f"{slide}.h5", "w") as file:
                file["features"] = np.ones((5, 8), np.float32)
                file["coords"] = np.zeros((5, 2), np.int64)
    for part in parts(config, "clinic"):
        run_stage("embed", config, "clinic", "files", part)
    run_stage("embedded", config, "clinic", "files")
    run_stage("mil", config, "her2", "files", "mean")
    paths = config.paths
    assert len(open_embeddings(paths.embeddings("clinic", "files", PART))) == 0
