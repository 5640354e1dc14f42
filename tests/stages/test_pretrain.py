"""`pretrain`: model, metrics, patients seen in training, and resuming after a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from stainssl.config import dump
from stainssl.encoders.loading import load
from stainssl.errors import StainsslError
from stainssl.plan import encoders as plan_encoders
from stainssl.stages import pretrain, run_stage
from stainssl.stain import StainProfile, normalize
from stainssl.stores.tiles import read_tiles, write_labels
from tests.pretrain.world import cohort, images, profiles

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = cohort(tmp_path_factory.mktemp("trained"))
    run_stage("target", config, "si")
    for name in ("si", "simclr", "random"):
        run_stage("pretrain", config, name)
    return config


def _weights(config, name):
    return (config.paths.model(name) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["si", "simclr", "random"])
def test_the_model_loads_with_timm(trained, name):
    path = trained.paths.model(name)
    model = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=0).eval()
    assert bool(torch.isfinite(model(torch.rand(2, 3, 32, 32))).all())
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 32, 32)


def test_methods_give_different_weights(trained):
    assert len({_weights(trained, name) for name in ("si", "simclr", "random")}) == 3


def test_seen_lists_patients_slides_and_tiles(trained):
    for name in ("si", "simclr"):
        seen = pd.read_csv(trained.paths.seen(name))
        assert seen.to_dict("list") == {
            "patient_id": ["p1", "p2", "p3"],
            "cohort": ["small"] * 3,
            "slides": [2, 1, 1],
            "tiles": [23, 10, 9],
        }
    assert pd.read_csv(trained.paths.seen("random")).empty


def test_metrics_are_written_per_epoch(trained):
    rows = pd.read_csv(trained.paths.metrics("si"))
    assert rows["epoch"].tolist() == [0, 1, 2]
    assert rows["step"].tolist() == [0, 5, 10]
    assert pd.read_csv(trained.paths.metrics("random")).empty
    assert trained.paths.curves("random").is_file()


def test_the_model_card(trained):
    card = (trained.paths.model("si") / "README.md").read_text(encoding="utf-8")
    for part in ("stain-invariant", "3: p1, p2, p3", "42 of 48 px at 0.5", "macenko, views: one"):
        assert part in card
    random = (trained.paths.model("random") / "README.md").read_text(encoding="utf-8")
    assert "none: random weights" in random


KILLED = """
import dataclasses, os, signal, sys
from pathlib import Path
from stainssl.config import load
from stainssl.pretrain.train import Learner
from stainssl.stages import pretrain, run_stage

settings, step = pretrain._settings, Learner.training_step

def often(*args):
    return dataclasses.replace(settings(*args), checkpoint_steps=3)

def killed(self, batch, batch_idx):
    if self.global_step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)

pretrain._settings, Learner.training_step = often, killed
run_stage("pretrain", load(Path(sys.argv[1])), "si")
"""


def test_a_killed_process_resumes_to_the_same_weights(trained, tmp_path, caplog):
    config = cohort(tmp_path)
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    run_stage("target", config, "si")
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "config.yaml")], cwd=REPO, env=env,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    assert not config.paths.model("si").exists()
    with caplog.at_level("INFO"):
        run_stage("pretrain", config, "si")
    assert "resuming from step 6 of 10" in caplog.text  # in the middle of the second epoch
    assert _weights(config, "si") == _weights(trained, "si")


def test_a_checkpoint_of_another_config_is_not_resumed(tmp_path, caplog):
    first = cohort(tmp_path, steps=2)
    run_stage("pretrain", first, "simclr")
    second = cohort(tmp_path, steps=2, lr=5e-4)
    run_stage("pretrain", second, "simclr")
    assert "is from another config" in caplog.text


def test_a_batch_larger_than_the_cohort_is_reduced(tmp_path, caplog):
    config = cohort(tmp_path, counts=(5, 4), batch_size=256, steps=1)
    run_stage("pretrain", config, "simclr")
    assert "batch_size 256 exceeds the 9 training tiles: using 9" in caplog.text


def test_a_single_tile_is_an_error(tmp_path):
    with pytest.raises(StainsslError, match="at least two tiles, found 1"):
        run_stage("pretrain", cohort(tmp_path, counts=(1,)), "simclr")


def test_a_missing_target_and_pretrained_weights_are_errors(tmp_path):
    config = cohort(tmp_path, counts=(4, 4))
    with pytest.raises(StainsslError, match="run `stainssl target` first"):
        run_stage("pretrain", config, "si")
    given = config.model_copy(
        update={"encoders": {"x": config.encoders["si"].model_copy(
            update={"method": None, "weights": "resnet18"})}}
    )  # fmt: skip
    with pytest.raises(StainsslError, match="is not trained here"):
        run_stage("pretrain", given, "x")


def test_no_valid_stain_profile_is_an_error(tmp_path, monkeypatch):
    config = cohort(tmp_path, counts=(4, 4))
    run_stage("target", config, "si")
    from_arrays = StainProfile.from_arrays
    monkeypatch.setattr(
        StainProfile, "from_arrays",
        lambda method, arrays: from_arrays(method, {**arrays, "valid": arrays["valid"] & False}),
    )  # fmt: skip
    with pytest.raises(StainsslError, match="None of the 8 training tiles has a valid macenko"):
        run_stage("pretrain", config, "si")


@pytest.mark.parametrize(
    "keys",
    [
        {"normalizer": ["macenko", "reinhard"], "target": {"policy": "spread"}},
        {"normalizer": ["reinhard", "macenko"], "views": "different", "stain_probability": 0.5},
        {"loss": "vicreg", "target": {"policy": "site", "per": "image"}},
        {"queue": 16, "optimizer": "lars", "geometry": {"area": [0.5, 1.0], "turns": False}},
    ],
)
def test_options_of_the_method_train(tmp_path, keys):
    config = cohort(tmp_path, counts=(6, 6), steps=2, **keys)
    run_stage("target", config, "si")
    run_stage("pretrain", config, "si")
    assert pd.read_csv(config.paths.metrics("si"))["loss"].notna().any()


def test_both_normalizers_have_targets_from_the_same_tiles(tmp_path):
    config = cohort(
        tmp_path, counts=(6, 6), normalizer=["macenko", "reinhard"], target={"policy": "spread"}
    )
    run_stage("target", config, "si")
    paths, job = config.paths, plan_encoders.pretrain(config, "si")
    cohorts, encoder = pretrain._open(job), job.encoder
    content = pretrain._target(paths.target("si"))
    macenko, reinhard = pretrain._stain(cohorts, encoder, content).stainings
    assert reinhard.profiles.method == "reinhard"
    candidates, means = reinhard.policy.candidates.mean, reinhard.profiles.mean
    places = [int((means - mean).abs().sum(1).argmin()) for mean in candidates]
    expected = [(one["slide"], one["tile"]) for one in content["candidates"]]
    store = cohorts.stores[0]
    names = [(f"small/{store.slide_id[store.slide[i]]}", int(store.tile[i])) for i in places]
    assert names == expected
    assert len(macenko.policy.candidates) == len(reinhard.policy.candidates)


@pytest.mark.parametrize("jitter", ["hed", "randstainna", "mix"])
def test_simclr_with_stain_jitter_trains(tmp_path, jitter):
    config = cohort(tmp_path, counts=(6, 6), steps=2, stain_jitter=jitter, method="simclr")
    run_stage("pretrain", config, "simclr")
    card = (config.paths.model("simclr") / "README.md").read_text(encoding="utf-8")
    assert f"of stain: {jitter}" in card


def test_a_model_trained_with_preprocessing_normalizes_tiles_when_loaded(tmp_path):
    config = cohort(tmp_path, steps=2)
    changed = {"simclr": config.encoders["simclr"].model_copy(update={"preprocess": True})}
    config = config.model_copy(update={"encoders": changed})
    run_stage("target", config, "simclr")
    run_stage("pretrain", config, "simclr")
    path = config.paths.model("simclr")
    encoder = load(path)
    expected = json.loads(config.paths.target("simclr").read_text())["fallback"]
    np.testing.assert_allclose(encoder.stain_profile.matrix, expected["matrix"], atol=1e-6)
    tiles = torch.from_numpy(images(6, "a")).permute(0, 3, 1, 2).contiguous()
    own = profiles(images(6, "a"))
    other = profiles(images(6, "b")).pooled()
    restained = normalize(tiles, own, other)
    plain = dataclasses.replace(encoder, stain_profile=None)
    distances = [float((e(tiles) - e(restained)).norm(dim=1).mean()) for e in (encoder, plain)]
    assert distances[0] < 0.5 * distances[1]  # normalization removes most of a stain change
    assert "stain.json" in (path / "README.md").read_text(encoding="utf-8")
    assert timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=0) is not None


def test_supervision_by_a_tile_label(tmp_path):
    config = cohort(tmp_path, steps=3)
    keys = {"label": "tumor", "supervised_weight": 1.0}
    encoder = config.encoders["si"].model_copy(update=keys)
    config = config.model_copy(update={"encoders": {"si": encoder}})
    paths = config.paths
    table = read_tiles(paths.tiles("small", "train-0000"))[["slide_id", "tile"]]
    path = paths.labels("small", "train-0000")
    run_stage("target", config, "si")
    write_labels(path, table.assign(tumor=np.float32(1)), {})
    with pytest.raises(StainsslError, match="fewer than two classes of 'tumor'"):
        run_stage("pretrain", config, "si")
    write_labels(path, table.assign(other=np.float32(1)), {})
    with pytest.raises(StainsslError, match="have no 'tumor'; they have other"):
        run_stage("pretrain", config, "si")
    write_labels(path, table.assign(tumor=(table["tile"] % 2).astype(np.float32)), {})
    run_stage("pretrain", config, "si")
    rows = pd.read_csv(paths.metrics("si"))
    rows = rows[rows["effective_rank"].notna()]  # the other rows have only the loss
    assert rows["knn_label"].notna().all()
    assert rows["knn_site"].notna().all()
    assert "label tumor, weight 1" in (paths.model("si") / "README.md").read_text(encoding="utf-8")


def test_metrics_of_the_running_job_are_those_of_the_result(trained):
    live = pd.read_csv(trained.paths.checkpoints("si") / "metrics.csv")
    assert live.equals(pd.read_csv(trained.paths.metrics("si")))


def test_the_batch_is_reduced_to_a_multiple_of_the_devices(caplog):
    assert pretrain._batch_size(10, 100, 4) == 8
    assert "not a multiple of 4 devices: using 8" in caplog.text
    with pytest.raises(StainsslError, match="leaves 1 tile"):
        pretrain._batch_size(256, 7, 4)


def test_an_incomplete_store_and_another_schema_are_errors(tmp_path):
    config = cohort(tmp_path, counts=(4, 4))
    store = config.paths.pixels("small", "train-0000")
    header = json.loads((store / "zarr.json").read_text())
    header["attributes"]["schema"] = 99
    (store / "zarr.json").write_text(json.dumps(header))
    with pytest.raises(
        StainsslError, match="expected pixels of schema 1, found pixels of schema 99"
    ):
        run_stage("pretrain", config, "simclr")
    header["attributes"] = {}  # written last: an incomplete store has none
    (store / "zarr.json").write_text(json.dumps(header))
    with pytest.raises(StainsslError, match="Delete it and run again"):
        run_stage("pretrain", config, "simclr")
    shutil.rmtree(store)
    with pytest.raises(StainsslError, match="is missing"):
        run_stage("pretrain", config, "simclr")
    assert not config.paths.model("simclr").exists()
