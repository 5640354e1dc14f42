"""One embedding per slide, by a slide encoder or imported from TRIDENT, as a bag of one."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from stainssl.config import parse
from stainssl.encoders import slide_encoders
from stainssl.errors import StainsslError
from stainssl.plan import encoders as plan
from stainssl.plan import groups, tasks
from stainssl.stages import predict, run_stage
from stainssl.stores.embeddings import open_embeddings, write_embeddings
from stainssl.stores.tables import read_table
from tests.encoders.test_slide_encoders import _chief

PATIENTS, PART, SCALE = 12, "all-0000", 4.0
COUNTS = [0 if i == 5 else 3 + i % 3 for i in range(PATIENTS)]  # slide s5 has no tiles


def _sheet(folder):
    rows = [
        {"slide_id": f"s{i}", "patient_id": f"p{i}", "path": f"s{i}.svs", "site": "ab"[i % 2],
         "her2": str(i // 2 % 2)}
        for i in range(PATIENTS)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "slides.csv", index=False)


def _config(folder, **encoders):
    return parse({
        "results": str(folder / "results"), "slides": {"part_size": 100},
        "cohorts": {"clinic": {"sheet": str(folder / "slides.csv"), "root": str(folder)}},
        "encoders": encoders,
        "tasks": {"t": {"level": "patient", "label": "her2", "cohorts": ["clinic"],
                        "split": {"kind": "cv", "folds": 2}}},
        "heads": {"mean": {"kind": "mean", "epochs": 3, "hidden": 8}},
        "benchmarks": {"b": {"tasks": ["t"], "encoders": [list(encoders)[-1]], "heads": ["mean"]}},
    })  # fmt: skip


@pytest.fixture
def config(tmp_path):
    _sheet(tmp_path)
    torch.manual_seed(2)
    _chief(tmp_path)
    return _config(
        tmp_path,
        tiles={"weights": "ctranspath"},
        slides={"weights": f"chief@{tmp_path / 'CHIEF_pretraining.pth'}", "vectors": "tiles"},
    )


def _write_tiles(config, rng, dim=768):
    features = rng.normal(size=(sum(COUNTS), dim))
    features[4, 0] = np.nan  # a tile that could not be embedded
    index = np.concatenate([np.arange(n) for n in COUNTS])
    write_embeddings(
        config.paths.embeddings("clinic", "tiles", PART),
        slide_id=[f"s{i}" for i in range(PATIENTS)], counts=COUNTS, dim=dim,
        blocks=[(features * SCALE).astype(np.float16)], tile=index.astype(np.int32),
        x=index * 256, y=index * 0, settings={"scale": SCALE},
    )  # fmt: skip
    return features


def _store(config, name):
    return open_embeddings(config.paths.embeddings("clinic", name, PART))


def test_a_slide_embedding_is_computed_from_the_valid_tiles(config, rng):
    features = _write_tiles(config, rng)
    run_stage("embed", config, "clinic", "slides", PART)
    store, loaded = _store(config, "slides"), slide_encoders.load(config.encoders["slides"].weights)
    assert store.slide_id == [f"s{i}" for i in range(PATIENTS) if i != 5]
    start = np.concatenate([[0], np.cumsum(COUNTS)])
    for slide in store.slide_id:
        number = int(slide[1:])
        own = features[start[number] : start[number + 1]]
        expected = loaded(own[np.isfinite(own).all(axis=1)])
        np.testing.assert_allclose(store.read(store.rows(slide))[0], expected, atol=5e-3)
    for stage, names in (("embedded", ("clinic", "slides")), ("folds", ("t",))):
        run_stage(stage, config, *names)
    run_stage("mil", config, "t", "slides", "mean")
    folder = config.paths.mil("t", "slides", "mean")
    assert len(read_table(folder / "predictions.parquet", "predictions")) == PATIENTS - 1


def test_inputs_of_the_job_are_tile_embeddings_and_weights(config, tmp_path):
    paths = config.paths
    job = plan.embed(config, "clinic", "slides", PART)
    tile_embeddings = str(paths.embeddings("clinic", "tiles", PART))
    assert job.inputs()["vectors"] == [tile_embeddings]
    assert "pixels" not in {name for name, files in job.inputs().items() if files}
    before = job.param()
    file = tmp_path / "CHIEF_pretraining.pth"
    file.write_bytes(file.read_bytes() + b" ")
    assert plan.embed(config, "clinic", "slides", PART).param() != before
    assert [run.name for run in config.runs_on("clinic")] == ["slides", "tiles"]
    [group] = groups.plan(config, {})["clinic"]
    assert list(group) == ["tiles"]  # only tile encoders need a network
    assert not tasks.benchmark(config, "b").robustness


def test_tile_embeddings_of_another_dimension_are_an_error(config, rng):
    _write_tiles(config, rng, dim=64)
    with pytest.raises(StainsslError, match=r"needs embeddings of 768 .* by ctranspath; .* 64"):
        run_stage("embed", config, "clinic", "slides", PART)


def test_predict_uses_the_tile_and_the_slide_encoder(config, tmp_path):
    new = predict.config_of_new(config, "t", "slides", tmp_path / "s.csv", tmp_path, tmp_path / "o")
    assert list(new.encoders) == ["tiles", "slides"]
    assert new.encoders["slides"] == config.encoders["slides"]
    assert new.encoders["tiles"].weights == "ctranspath"


def test_a_tile_task_is_refused(config, tmp_path):
    found = config.model_dump(mode="json")
    found["tasks"]["t"]["level"] = "tile"
    with pytest.raises(
        StainsslError, match=r"'slides' gives one vector per slide, but tasks\.t is of"
    ):
        parse(found)


def test_slide_features_of_trident_are_used_as_bags_of_one(tmp_path, rng):
    _sheet(tmp_path)
    folder = tmp_path / "slide_features_titan"
    folder.mkdir()
    vectors = rng.normal(size=(PATIENTS, 16)).astype(np.float32)
    for number in range(1, PATIENTS):  # s0 has no file
        with h5py.File(folder / f"s{number}.h5", "w") as file:
            file["features"], file["coords"] = vectors[number], np.zeros((9, 2), np.int64)
    config = _config(tmp_path, titan={"features": f"trident:{folder}"})
    run_stage("embed", config, "clinic", "titan", PART)
    store = _store(config, "titan")
    np.testing.assert_allclose(store.read(store.rows("s7")), vectors[7][None], atol=2e-3)
    run_stage("folds", config, "t")
    run_stage("mil", config, "t", "titan", "mean")
    folder = config.paths.mil("t", "titan", "mean")
    assert len(read_table(folder / "predictions.parquet", "predictions")) == PATIENTS - 1
