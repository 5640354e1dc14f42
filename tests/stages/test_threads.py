"""However many threads a job has, its stores and tables are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stainssl.config import Config, parse
from stainssl.demo import make
from stainssl.runtime import parallel
from stainssl.stages import run_stage
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.tiles import read_qc, read_tiles
from tests.stages.trained import save_encoder

PART = "all-0000"


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sheet of one sound slide, one that is cut short and one that is none; and an encoder."""
    folder = tmp_path_factory.mktemp("threads")
    make(folder / "clinic", 3, {"a": 2}, processes=1, side_px=768)
    sheet = pd.read_csv(folder / "clinic/slides.csv", dtype=str)[["slide_id", "patient_id", "path"]]
    (folder / "clinic/slides/bad.svs").write_bytes(b"no slide")
    bad = pd.DataFrame([["bad", "bad", "slides/bad.svs"]], columns=sheet.columns)
    pd.concat([sheet.iloc[:2], bad]).to_csv(folder / "sheet.csv", index=False)
    save_encoder(folder / "enc" / "model")
    return folder


def _made(slides: Path, results: Path, threads: int) -> Config:
    config = parse({
        "results": str(results),
        "slides": {"part_size": 100},
        "cohorts": {"clinic": {"sheet": str(slides / "sheet.csv"),
                               "root": str(slides / "clinic")}},
        "tilings": {"default": {"mpp": 0.5, "size": 64, "min_tissue": 0.3}},
        "encoders": {"enc": {"weights": f"local-dir:{slides / 'enc' / 'model'}"}},
    })  # fmt: skip
    parallel.use_threads(threads)
    try:
        run_stage("tile", config, "clinic", PART)
        run_stage("pixels", config, "clinic", PART)
        run_stage("embed", config, "clinic", "enc", PART)
    finally:
        parallel.use_threads(1)
    return config


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("threads", [2, 3, 5])  # as many as slides, more, and several a slide
def test_threads_change_no_byte(slides: Path, tmp_path: Path, threads: int) -> None:
    one = _made(slides, slides / "one", 1).paths
    many = _made(slides, tmp_path / "many", threads).paths
    key = ("clinic", PART)
    pd.testing.assert_frame_equal(read_tiles(one.tiles(*key)), read_tiles(many.tiles(*key)))
    qc = [read_qc(paths.qc(*key)).drop(columns="seconds") for paths in (one, many)]
    pd.testing.assert_frame_equal(*qc)
    assert _files(one.pixels(*key)) == _files(many.pixels(*key))
    vectors = [open_embeddings(paths.embeddings("clinic", "enc", PART)) for paths in (one, many)]
    np.testing.assert_array_equal(*(store.read(slice(0, len(store))) for store in vectors))
    assert len(vectors[0]) > 64  # several blocks
