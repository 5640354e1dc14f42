"""Stores and tables do not depend on the number of threads of a job."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from stainssl.cohort import parts
from stainssl.config import Config, Encoder, Task, parse
from stainssl.demo import make
from stainssl.runtime import parallel
from stainssl.stages import predict, run_stage
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.tiles import read_qc, read_tiles
from tests.stages.trained import Trained, save_encoder

PART = "all-0000"


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sheet of an intact, a truncated and an unreadable slide; and an encoder."""
    folder = tmp_path_factory.mktemp("threads")
    make(folder / "clinic", 3, {"a": 2}, processes=1, side_px=768)
    sheet = pd.read_csv(folder / "clinic/slides.csv", dtype=str)[["slide_id", "patient_id", "path"]]
    (folder / "clinic/slides/bad.svs").write_bytes(b"no slide")
    bad = pd.DataFrame([["bad", "bad", "slides/bad.svs"]], columns=sheet.columns)
    pd.concat([sheet.iloc[:2], bad]).to_csv(folder / "sheet.csv", index=False)
    save_encoder(folder / "enc" / "model")
    return folder


def _run_stages(slides: Path, results: Path, threads: int) -> Config:
    config = parse({
        "results": str(results),
        "slides": {"part_size": 100},
        "cohorts": {"clinic": {"sheet": str(slides / "sheet.csv"),
                               "root": str(slides / "clinic")}},
        "tilings": {"default": {"mpp": 0.5, "size": 64, "min_tissue": 0.3}},
        "encoders": {"enc": {"weights": f"local-dir:{slides / 'enc' / 'model'}"}},
    })  # fmt: skip
    with _threads(threads):
        run_stage("tile", config, "clinic", PART)
        run_stage("pixels", config, "clinic", PART)
        assert torch.get_num_threads() == threads  # `predict` needs it for its network
        run_stage("embed", config, "clinic", "enc", PART)
    return config


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Use this many threads in every library, as `--threads` does."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        with threadpool_limits(threads):
            parallel.set_job_threads(threads)
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            yield
    finally:
        parallel.set_job_threads(1)
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("threads", [2, 3, 7])  # fewer than slides, as many, and several per slide
def test_stores_are_the_same_for_any_number_of_threads(
    slides: Path, tmp_path: Path, threads: int
) -> None:
    one = _run_stages(slides, slides / "one", 1).paths
    many = _run_stages(slides, tmp_path / "many", threads).paths
    key = ("clinic", PART)
    pd.testing.assert_frame_equal(read_tiles(one.tiles(*key)), read_tiles(many.tiles(*key)))
    qc = [read_qc(paths.qc(*key)).drop(columns="seconds") for paths in (one, many)]
    pd.testing.assert_frame_equal(*qc)
    assert _files(one.previews(*key)) == _files(many.previews(*key))
    assert _files(one.pixels(*key)) == _files(many.pixels(*key))
    vectors = [open_embeddings(paths.embeddings("clinic", "enc", PART)) for paths in (one, many)]
    np.testing.assert_array_equal(*(store.read(slice(0, len(store))) for store in vectors))
    assert len(vectors[0]) > 64  # several blocks


@pytest.fixture
def world(trained: Trained, tmp_path: Path) -> Config:
    """A copy of the trained cohort with a tile task and an encoder to be trained, not run yet."""
    shutil.copytree(trained.config.results, tmp_path / "results")
    old = trained.config
    tumor = Task(level="tile", label="tumor", cohorts=["clinic"], split=old.tasks["patient"].split)
    own = Encoder.model_validate({"method": "stain-invariant", "train": {"cohorts": ["clinic"]}})
    config = old.model_copy(
        update={
            "results": tmp_path / "results",
            "tasks": {**old.tasks, "tumor": tumor},
            "encoders": {**old.encoders, "own": own},
        }
    )
    for part in parts(config, "clinic"):
        run_stage("label", config, "clinic", part)
    run_stage("folds", config, "tumor")
    return config


def _run_task_stage(config: Config, stage: str, trained: Trained, out: Path) -> Path:
    """Run a stage on the trained cohort; returns its output folder."""
    if stage == "mil":
        run_stage("mil", config, "patient", "enc", "abmil")
        return config.paths.mil("patient", "enc", "abmil")
    if stage == "probe":
        run_stage("probe", config, "tumor", "enc")
        return config.paths.probe("tumor", "enc")
    if stage == "target":
        run_stage("target", config, "own")
        return config.paths.target("own").parent
    sheet = out.with_suffix(".csv")
    trained.rows("a-001-1", "b-003-1").to_csv(sheet, index=False)
    predict.run(config, "patient", "enc", "abmil", sheet, trained.root, out)
    return out


def _contents(folder: Path) -> dict[str, Any]:
    """File → its content, without the run time of each slide."""
    read = {
        ".parquet": lambda path: pd.read_parquet(path).drop(columns="seconds", errors="ignore"),
        ".csv": pd.read_csv,
        ".safetensors": load_file,  # the order in its header varies
    }
    return {
        str(path.relative_to(folder)): read.get(path.suffix, Path.read_bytes)(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def _assert_same(one: Any, other: Any, name: str) -> None:
    """Equal up to rounding: torch and BLAS sum large products in another order."""
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, rtol=1e-5, atol=1e-6, obj=name)
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key, values in one.items():
            np.testing.assert_allclose(values, other[key], 1e-4, 1e-5, err_msg=f"{name} {key}")
    else:
        assert one == other, name


@pytest.mark.xdist_group("trained")
@pytest.mark.parametrize("stage", ["mil", "probe", "target", "predict"])
def test_results_are_the_same_for_any_number_of_threads(
    world: Config, trained: Trained, stage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    contents = []
    for threads in (1, 2, 3):
        with _threads(threads):
            out = _run_task_stage(world, stage, trained, tmp_path / "predicted")
        assert re.search(r", \S+ (bags|tiles|slides)/s: \w.* \d+%", caplog.messages[-1])
        contents.append(_contents(out))
        shutil.rmtree(out)
    one, *others = contents
    assert one
    for other in others:
        assert other.keys() == one.keys()
        for name, content in one.items():
            _assert_same(content, other[name], name)
