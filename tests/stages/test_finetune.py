"""`finetune`: a network is trained end to end on the labels of a tile task."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stainssl.config import Config, FineTune, parse
from stainssl.encoders.embedding import embed_pixels
from stainssl.encoders.loading import load
from stainssl.errors import StainsslError
from stainssl.paths import Paths
from stainssl.plan.workflow import BUILDERS
from stainssl.pretrain import finetune as library
from stainssl.stages import finetune, run_stage
from stainssl.stores.embeddings import write_embeddings
from stainssl.stores.pixels import open_pixels
from stainssl.stores.tables import read_table
from stainssl.stores.tiles import read_labels, write_labels
from stainssl.view.viewer_data import ViewerData
from tests.stages.tuned_world import PATIENTS, SIZE, build, config_of, save_network

# The weights are random, so the statistics of their norms are not worth keeping.
FULL_TRAINING = {
    "stain_jitter": "none", "color": "none", "epochs": 20, "patience": 20, "freeze_norms": False
}  # fmt: skip
SHORT_TRAINING = {"epochs": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort with a label that is learnt in seconds, and predictions of both tasks."""
    folder = tmp_path_factory.mktemp("tuned")
    build(folder)
    config = config_of(folder, FULL_TRAINING)
    _embed(config)
    run_stage("probe", config, "probed", "net")
    run_stage("finetune", config, "tuned", "net")
    return folder


@pytest.fixture(scope="module")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of few tiles, for tests that need no learning."""
    folder = tmp_path_factory.mktemp("small")
    build(folder, tiles=6, with_stain=True)
    return folder


@pytest.fixture
def small_copy(small_cohort: Path, tmp_path: Path) -> Path:
    """A copy of the small cohort."""
    return Path(shutil.copytree(small_cohort, tmp_path / "few"))


def _embed(config: Config) -> None:
    encoder, paths = load(config.encoders["net"].weights or ""), config.paths
    for split in PATIENTS:
        store = open_pixels(paths.pixels("clinic", f"{split}-0000"))
        zeros = np.zeros(len(store), np.int64)
        write_embeddings(
            paths.embeddings("clinic", "net", f"{split}-0000"),
            slide_id=store.slide_id, counts=np.bincount(store.slide).tolist(), dim=encoder.dim,
            blocks=[one for (one,) in embed_pixels([encoder], store)], tile=store.tile, x=zeros,
            y=zeros, settings={},
        )  # fmt: skip


def _auroc(folder: Path) -> float:
    rows = pd.read_csv(folder / "metrics.csv").query("group == 'all'").set_index("metric")
    return float(rows.loc["auroc", "value"])


def _fine_tune(config: Config) -> pd.DataFrame:
    run_stage("finetune", config, "tuned", "net")
    folder = config.paths.fine_tuned("tuned", "net")
    return read_table(folder / "predictions.parquet", "predictions")


def test_fine_tuning_learns_a_label_that_a_linear_probe_does_not(world: Path) -> None:
    paths = config_of(world).paths
    predictions = read_table(
        paths.fine_tuned("tuned", "net") / "predictions.parquet", "predictions"
    )
    assert _auroc(paths.fine_tuned("tuned", "net")) > 0.9
    assert _auroc(paths.probe("probed", "net")) < 0.75
    probed = read_table(paths.probe("probed", "net") / "predictions.parquet", "predictions")
    assert list(predictions.columns) == list(probed.columns)
    assert predictions[["slide_id", "tile", "y"]].equals(probed[["slide_id", "tile", "y"]])
    assert set(predictions["patient_id"]) == {f"test{i}" for i in range(PATIENTS["test"])}
    files = {path.name for path in paths.fine_tuned("tuned", "net").iterdir()}
    assert files == {"predictions.parquet", "metrics.csv"}


def test_the_benchmark_table_names_the_protocol(world: Path) -> None:
    config = config_of(world, FULL_TRAINING)
    run_stage("benchmark", config, "main")
    folder = config.paths.benchmark("main")
    text = (folder / "table.md").read_text()
    assert "| net | linear |" in text
    assert "| net | fine-tune |" in text
    assert "the network itself was trained on the task's labels" in text
    long = pd.read_csv(folder / "table.csv")
    assert set(long.query("task == 'tuned'")["head"].dropna()) == {"fine-tune", "columns"}


def test_the_viewer_finds_the_predictions(world: Path) -> None:
    viewer = ViewerData(config_of(world, FULL_TRAINING))
    try:
        predictions = viewer.benchmarks.predictions("tuned", "net", "fine-tune")
        assert predictions
        found = viewer.records.tile_predictions("clinic")["tuned~net"]
        assert found.parent == viewer.records.paths.fine_tuned("tuned", "net")
    finally:
        viewer.close()


def test_labels_of_test_patients_do_not_affect_predictions(small_copy: Path) -> None:
    config = config_of(small_copy, SHORT_TRAINING)
    before = _fine_tune(config)
    path = config.paths.labels("clinic", "test-0000")
    table = read_labels(path)
    write_labels(path, table.assign(odd=1 - table["odd"]), {})
    after = _fine_tune(config)
    assert (before["y"] != after["y"]).all()
    pd.testing.assert_frame_equal(before.drop(columns="y"), after.drop(columns="y"))


def test_predictions_depend_on_the_seed_and_are_reproducible(small_copy: Path) -> None:
    first, again = (_fine_tune(config_of(small_copy, SHORT_TRAINING)) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    other = config_of(small_copy, SHORT_TRAINING).model_copy(update={"seed": 1})
    assert not np.allclose(first["p_1"], _fine_tune(other)["p_1"])


class Killed(Exception):
    """Stands in for a killed job."""


@pytest.mark.parametrize(
    "keys",
    [{"tune": "full"}, {"tune": "last-1"}, {"tune": "lora", "lora": {"rank": 2}},
     {"consistency": 0.5}],
    ids=str,
)  # fmt: skip
def test_a_killed_job_resumes_to_the_same_predictions(
    small_copy: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    if keys.get("tune") == "lora":
        save_network(small_copy / "net", "test_vit")
    split = {"kind": "cv", "folds": 2}
    config = config_of(small_copy, {**SHORT_TRAINING, "epochs": 3, **keys}, split=split)
    run_stage("folds", config, "tuned")
    whole = _fine_tune(config)
    assert set(whole["fold"]) == {0, 1}
    learn = library._learn

    def killed_after(steps: int) -> Any:
        left = iter(range(steps))

        def step(*args: Any) -> None:
            if next(left, None) is None:
                raise Killed
            learn(*args)

        return step

    monkeypatch.setattr(library, "CHECKPOINT_SECONDS", 0.0)  # a checkpoint after each step
    shutil.rmtree(config.paths.fine_tuned("tuned", "net"))
    for steps in (2, 5):
        monkeypatch.setattr(library, "_learn", killed_after(steps))
        with pytest.raises(Killed):
            run_stage("finetune", config, "tuned", "net")
    monkeypatch.setattr(library, "_learn", learn)
    with caplog.at_level("INFO"):
        again = _fine_tune(config)
    assert "resuming from step" in caplog.text
    pd.testing.assert_frame_equal(whole, again)
    left = config.paths.tuning("tuned", "net")
    assert not list(left.glob("*.safetensors"))


def test_a_fold_with_predictions_is_not_trained_again(
    small_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(small_copy, SHORT_TRAINING, split={"kind": "cv", "folds": 2})
    run_stage("folds", config, "tuned")
    whole, fit, trained = _fine_tune(config), finetune.fit, []

    def fit_killed_in_the_second_fold(*args: Any, **keys: Any) -> Any:
        trained.append(keys["seed"])
        if len(trained) == 2:
            raise Killed
        return fit(*args, **keys)

    monkeypatch.setattr(finetune, "fit", fit_killed_in_the_second_fold)
    with pytest.raises(Killed):
        run_stage("finetune", config, "tuned", "net")
    pd.testing.assert_frame_equal(_fine_tune(config), whole)
    assert len(trained) == len(set(trained)) + 1  # the first fold once, the second twice


def _trained_network(config: Config, monkeypatch: pytest.MonkeyPatch) -> library.TileClassifier:
    """The network at the end of training."""
    fit, seen = finetune.fit, []
    monkeypatch.setattr(
        finetune, "fit", lambda network, *a, **k: seen.append(network) or fit(network, *a, **k)
    )
    run_stage("finetune", config, "tuned", "net")
    return seen[0]


def test_frozen_layers_are_unchanged(small_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(small_copy, {**SHORT_TRAINING, "tune": "last-1"})
    network = _trained_network(config, monkeypatch)
    given, found = load(small_copy / "net").model.state_dict(), network.backbone.state_dict()
    changed = {name for name in given if not torch.equal(given[name], found[name])}
    assert {name.partition(".")[0] for name in changed} == {"layer4"}


def test_adapters_do_not_change_the_pretrained_weights(
    small_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_network(small_copy / "net", "test_vit")
    config = config_of(small_copy, {**SHORT_TRAINING, "tune": "lora", "lora": {"rank": 2}})
    network = _trained_network(config, monkeypatch)
    given = load(small_copy / "net").model.state_dict()
    found = {n.replace(".base_layer", ""): v for n, v in network.backbone.state_dict().items()}
    assert all(torch.equal(value, found[name]) for name, value in given.items())
    assert any("lora_B" in name and value.any() for name, value in found.items())


def test_consistency_changes_the_predictions(small_copy: Path) -> None:
    plain, consistent = (
        _fine_tune(
            config_of(small_copy, {**SHORT_TRAINING, "stain_jitter": "none", "consistency": weight})
        )
        for weight in (0.0, 10.0)
    )
    assert not np.allclose(plain["p_1"], consistent["p_1"])


def _relabel(folder: Path, split: str, value: float | None, patients: int | None = None) -> None:
    """Set one label, or unknown, for the tiles of a split, or of its first patients."""
    path = Paths(folder / "results", {"clinic": "default"}).labels("clinic", f"{split}-0000")
    table = read_labels(path)
    slides = table["slide_id"].unique()[:patients]
    selected = table["slide_id"].isin(slides)
    table.loc[selected, "odd"] = np.nan if value is None else value
    write_labels(path, table, {})


def test_one_training_class_in_a_fold_is_an_error(small_copy: Path) -> None:
    _relabel(small_copy, "train", 1.0)
    with pytest.raises(
        StainsslError, match=r"tasks\.tuned: repeat 0 fold 0: The training tiles have one class"
    ):
        run_stage("finetune", config_of(small_copy, SHORT_TRAINING), "tuned", "net")


def test_unknown_labels_are_an_error(small_copy: Path) -> None:
    _relabel(small_copy, "test", None)
    with pytest.raises(StainsslError, match=r"tasks\.tuned: No test patient has a labelled tile"):
        run_stage("finetune", config_of(small_copy, SHORT_TRAINING), "tuned", "net")
    for split in PATIENTS:
        _relabel(small_copy, split, None)
    with pytest.raises(StainsslError, match=r"No tile of clinic has a known 'odd'"):
        run_stage("finetune", config_of(small_copy, SHORT_TRAINING), "tuned", "net")


def test_patients_without_labelled_tiles_are_logged(
    small_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _relabel(small_copy, "train", None, patients=2)
    predictions = _fine_tune(config_of(small_copy, SHORT_TRAINING))
    assert "2 of 16 patients of the folds have no tile with a known label: train0, train1" in (
        caplog.text
    )
    assert len(predictions) == PATIENTS["test"] * 5


def test_without_validation_tiles_all_epochs_are_trained_with_a_note(
    small_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _relabel(small_copy, "val", None)
    with caplog.at_level("INFO"):
        predictions = _fine_tune(config_of(small_copy, SHORT_TRAINING))
    assert "no validation tiles" in caplog.text
    assert set(predictions["threshold"]) == {0.5}


def test_more_blocks_than_the_network_has_is_an_error(small_copy: Path) -> None:
    with pytest.raises(StainsslError, match="has 4 blocks or stages"):
        run_stage(
            "finetune", config_of(small_copy, {**SHORT_TRAINING, "tune": "last-9"}), "tuned", "net"
        )


def test_probe_and_finetune_refuse_each_others_protocol(small_copy: Path) -> None:
    with pytest.raises(StainsslError, match="protocol probe: run `probe`"):
        run_stage("finetune", config_of(small_copy), "probed", "net")
    with pytest.raises(StainsslError, match="protocol fine-tune: run `finetune`"):
        run_stage("probe", config_of(small_copy), "tuned", "net")


def test_an_encoder_of_the_config_is_loaded_from_its_model(small_copy: Path) -> None:
    given = config_of(small_copy, SHORT_TRAINING).model_dump(mode="json")
    given["encoders"]["net"] = {"method": "random", "backbone": "test_resnet", "input_size": SIZE}
    config = parse(given)
    run_stage("pretrain", config, "net")
    assert len(_fine_tune(config)) == PATIENTS["test"] * 5
    assert not BUILDERS["finetune"](config, "tuned", "net").tuning.freeze_norms


def _task_config(fine_tune: dict[str, Any] | None = None, **keys: Any) -> Config:
    task = {"level": "tile", "label": "x", "cohorts": ["d"], **keys}
    if fine_tune is not None:
        task["fine_tune"] = fine_tune
    return parse({"cohorts": {"d": {"demo": {}}}, "tasks": {"t": task}})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"protocol": "fine-tune", "level": "slide"}, "is for tasks of level tile"),
        ({"fine_tune": {"epochs": 3}}, "fine_tune needs protocol"),
        ({"protocol": "fine-tune", "fine_tune": {"lora": {"rank": 2}}}, "lora needs tune: lora"),
        ({"protocol": "fine-tune", "fine_tune": {"tune": "half"}}, "write full, lora, or last-N"),
        ({"protocol": "fine-tune", "fine_tune": {"consistency": 1, "stain_jitter": "mix"}},
         "which consistency changes: use hed"),
        ({"protocol": "fine-tune",
          "fine_tune": {"stain_jitter": "none", "stain_jitter_strength": 1}}, "has no effect with"),
        ({"protocol": "fine-tune", "fine_tune": {"lora": {"merge": True}}}, "unknown key"),
        ({"protocol": "fine tune"}, "fine-tune"),
    ],
    ids=str,
)  # fmt: skip
def test_keys_without_effect_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(StainsslError, match=message):
        _task_config(**keys)


KEYS = [
    {"tune": "last-1"}, {"tune": "lora"}, {"epochs": 3}, {"patience": 2}, {"batch_size": 8},
    {"lr": 1e-3}, {"weight_decay": 0.1}, {"color": "none"}, {"stain_jitter": "none"},
    {"stain_jitter_strength": 0.1}, {"consistency": 0.5}, {"freeze_norms": False},
]  # fmt: skip


def test_each_key_changes_the_job_of_its_task_only() -> None:
    def params(task: dict[str, Any]) -> tuple[str, str]:
        config = _task_config(protocol="fine-tune", **task).model_dump(mode="json")
        config["tasks"]["p"] = {**config["tasks"]["t"], "protocol": "probe", "fine_tune": {}}
        config["encoders"] = {"e": {"weights": "resnet18"}}
        known = parse(config)
        jobs = BUILDERS["finetune"](known, "t", "e"), BUILDERS["probe"](known, "p", "e")
        return jobs[0].param(), jobs[1].param()

    tuned, probed = params({})
    others = [params({"fine_tune": key}) for key in KEYS]
    assert len({tuned, *(other for other, _ in others)}) == len(KEYS) + 1
    assert {other for _, other in others} == {probed}
    assert set(FineTune.model_fields) == {next(iter(key)) for key in KEYS} | {"lora"}


def test_runs_of_different_seeds_are_different_jobs() -> None:
    config = _task_config(protocol="fine-tune").model_dump(mode="json")
    config["encoders"] = {"e": {"weights": "resnet18", "seeds": [0, 1]}}
    first, second = (BUILDERS["finetune"](parse(config), "t", f"e.{seed}") for seed in (0, 1))
    assert first.param() != second.param()


@pytest.mark.parametrize(
    ("encoder", "tuning", "message"),
    [
        ({"features": "trident:x"}, {}, "without a network that tasks.tuned could fine-tune"),
        ({"weights": "resnet18", "preprocess": "reference"}, {"consistency": 1.0},
         "removes the stain that"),
    ],
    ids=["features", "preprocess"],
)  # fmt: skip
def test_encoders_that_cannot_be_fine_tuned_are_refused(
    tmp_path: Path, encoder: dict[str, Any], tuning: dict[str, Any], message: str
) -> None:
    given = config_of(tmp_path, tuning).model_dump(mode="json")
    given["encoders"] = {"net": encoder}
    with pytest.raises(StainsslError, match=message):
        parse(given)
