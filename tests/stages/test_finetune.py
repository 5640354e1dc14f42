"""`finetune`: a network trained end to end on a tile task's labels, as the verb does it."""

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

# The network is of random weights, whose norms have no statistics that are worth keeping.
LEARNS = {
    "stain_jitter": "none", "color": "none", "epochs": 20, "patience": 20, "freeze_norms": False
}  # fmt: skip
FEW = {"epochs": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort that networks learn in seconds, and its answers."""
    folder = tmp_path_factory.mktemp("tuned")
    build(folder)
    config = config_of(folder, LEARNS)
    _embed(config)
    run_stage("probe", config, "probed", "net")
    run_stage("finetune", config, "tuned", "net")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of few tiles, for what needs no learning."""
    folder = tmp_path_factory.mktemp("small")
    build(folder, tiles=6, with_stain=True)
    return folder


@pytest.fixture
def few(small: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(small, tmp_path / "few"))


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


def _tuned(config: Config) -> pd.DataFrame:
    run_stage("finetune", config, "tuned", "net")
    folder = config.paths.fine_tuned("tuned", "net")
    return read_table(folder / "predictions.parquet", "predictions")


def test_it_learns_a_label_that_a_frozen_network_does_not_tell(world: Path) -> None:
    paths = config_of(world).paths
    said = read_table(paths.fine_tuned("tuned", "net") / "predictions.parquet", "predictions")
    assert _auroc(paths.fine_tuned("tuned", "net")) > 0.9
    assert _auroc(paths.probe("probed", "net")) < 0.75
    probed = read_table(paths.probe("probed", "net") / "predictions.parquet", "predictions")
    assert list(said.columns) == list(probed.columns)
    assert said[["slide_id", "tile", "y"]].equals(probed[["slide_id", "tile", "y"]])
    assert set(said["patient_id"]) == {f"test{i}" for i in range(PATIENTS["test"])}
    files = {path.name for path in paths.fine_tuned("tuned", "net").iterdir()}
    assert files == {"predictions.parquet", "metrics.csv"}


def test_the_table_names_the_protocol_and_asks_for_no_few_shot_curve(world: Path) -> None:
    config = config_of(world, LEARNS)
    run_stage("benchmark", config, "main")
    folder = config.paths.benchmark("main")
    text = (folder / "table.md").read_text()
    assert "| net | linear |" in text
    assert "| net | fine-tune |" in text
    assert "the network itself was trained on the task's labels" in text
    long = pd.read_csv(folder / "table.csv")
    assert set(long.query("task == 'tuned'")["head"].dropna()) == {"fine-tune", "columns"}


def test_the_page_finds_what_the_network_says(world: Path) -> None:
    viewer = ViewerData(config_of(world, LEARNS))
    try:
        cases = viewer.benchmarks.predictions("tuned", "net", "fine-tune")
        assert cases
        found = viewer.records.tile_predictions("clinic")["tuned~net"]
        assert found.parent == viewer.records.paths.fine_tuned("tuned", "net")
    finally:
        viewer.close()


def test_labels_of_test_patients_decide_nothing(few: Path) -> None:
    config = config_of(few, FEW)
    before = _tuned(config)
    path = config.paths.labels("clinic", "test-0000")
    table = read_labels(path)
    write_labels(path, table.assign(odd=1 - table["odd"]), {})
    after = _tuned(config)
    assert (before["y"] != after["y"]).all()
    pd.testing.assert_frame_equal(before.drop(columns="y"), after.drop(columns="y"))


def test_a_seed_is_another_training_and_the_same_seed_the_same(few: Path) -> None:
    first, again = (_tuned(config_of(few, FEW)) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    other = config_of(few, FEW).model_copy(update={"seed": 1})
    assert not np.allclose(first["p_1"], _tuned(other)["p_1"])


class Killed(Exception):
    """Stands for a job that is killed."""


@pytest.mark.parametrize(
    "keys",
    [{"tune": "full"}, {"tune": "last-1"}, {"tune": "lora", "lora": {"rank": 2}},
     {"consistency": 0.5}],
    ids=str,
)  # fmt: skip
def test_a_killed_job_goes_on_to_the_same_answer(
    few: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    if keys.get("tune") == "lora":
        save_network(few / "net", "test_vit")
    split = {"kind": "cv", "folds": 2}
    config = config_of(few, {**FEW, "epochs": 3, **keys}, split=split)
    run_stage("folds", config, "tuned")
    whole = _tuned(config)
    assert set(whole["fold"]) == {0, 1}
    learn = library._learn

    def killed_after(steps: int) -> Any:
        left = iter(range(steps))

        def step(*args: Any) -> None:
            if next(left, None) is None:
                raise Killed
            learn(*args)

        return step

    monkeypatch.setattr(library, "CHECKPOINT_SECONDS", 0.0)  # one each step
    shutil.rmtree(config.paths.fine_tuned("tuned", "net"))
    for steps in (2, 5):
        monkeypatch.setattr(library, "_learn", killed_after(steps))
        with pytest.raises(Killed):
            run_stage("finetune", config, "tuned", "net")
    monkeypatch.setattr(library, "_learn", learn)
    with caplog.at_level("INFO"):
        again = _tuned(config)
    assert "resuming from step" in caplog.text
    pd.testing.assert_frame_equal(whole, again)
    left = config.paths.tuning("tuned", "net")
    assert not list(left.glob("*.safetensors"))


def test_a_fold_that_was_answered_is_not_trained_again(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(few, FEW, split={"kind": "cv", "folds": 2})
    run_stage("folds", config, "tuned")
    whole, true, trained = _tuned(config), finetune.fit, []

    def second_dies(*args: Any, **keys: Any) -> Any:
        trained.append(keys["seed"])
        if len(trained) == 2:
            raise Killed
        return true(*args, **keys)

    monkeypatch.setattr(finetune, "fit", second_dies)
    with pytest.raises(Killed):
        run_stage("finetune", config, "tuned", "net")
    pd.testing.assert_frame_equal(_tuned(config), whole)
    assert len(trained) == len(set(trained)) + 1  # the first fold once, the second twice


def _networks(config: Config, monkeypatch: pytest.MonkeyPatch) -> library.TileClassifier:
    """The network as it was when training ended."""
    true, seen = finetune.fit, []
    monkeypatch.setattr(
        finetune, "fit", lambda network, *a, **k: seen.append(network) or true(network, *a, **k)
    )
    run_stage("finetune", config, "tuned", "net")
    return seen[0]


def test_what_is_frozen_stays_as_it_was_to_the_bit(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(few, {**FEW, "tune": "last-1"})
    network = _networks(config, monkeypatch)
    given, found = load(few / "net").model.state_dict(), network.backbone.state_dict()
    changed = {name for name in given if not torch.equal(given[name], found[name])}
    assert {name.partition(".")[0] for name in changed} == {"layer4"}


def test_adapters_leave_the_given_weights_alone(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_network(few / "net", "test_vit")
    config = config_of(few, {**FEW, "tune": "lora", "lora": {"rank": 2}})
    network = _networks(config, monkeypatch)
    given = load(few / "net").model.state_dict()
    found = {n.replace(".base_layer", ""): v for n, v in network.backbone.state_dict().items()}
    assert all(torch.equal(value, found[name]) for name, value in given.items())
    assert any("lora_B" in name and value.any() for name, value in found.items())


def test_consistency_changes_what_is_learnt(few: Path) -> None:
    plain, alike = (
        _tuned(config_of(few, {**FEW, "stain_jitter": "none", "consistency": weight}))
        for weight in (0.0, 10.0)
    )
    assert not np.allclose(plain["p_1"], alike["p_1"])


def _relabel(folder: Path, split: str, value: float | None, patients: int | None = None) -> None:
    """One label for all tiles of a split, or unknown; of its first patients only."""
    path = Paths(folder / "results", {"clinic": "default"}).labels("clinic", f"{split}-0000")
    table = read_labels(path)
    slides = table["slide_id"].unique()[:patients]
    there = table["slide_id"].isin(slides)
    table.loc[there, "odd"] = np.nan if value is None else value
    write_labels(path, table, {})


def test_one_class_in_a_fold_is_a_sentence(few: Path) -> None:
    _relabel(few, "train", 1.0)
    with pytest.raises(
        StainsslError, match=r"tasks\.tuned: repeat 0 fold 0: The training tiles have one class"
    ):
        run_stage("finetune", config_of(few, FEW), "tuned", "net")


def test_unknown_labels_are_a_sentence(few: Path) -> None:
    _relabel(few, "test", None)
    with pytest.raises(StainsslError, match=r"tasks\.tuned: No test patient has a labelled tile"):
        run_stage("finetune", config_of(few, FEW), "tuned", "net")
    for split in PATIENTS:
        _relabel(few, split, None)
    with pytest.raises(StainsslError, match=r"No tile of clinic has a known 'odd'"):
        run_stage("finetune", config_of(few, FEW), "tuned", "net")


def test_patients_without_tiles_are_told(few: Path, caplog: pytest.LogCaptureFixture) -> None:
    _relabel(few, "train", None, patients=2)
    said = _tuned(config_of(few, FEW))
    assert "2 of 16 patients of the folds have no tile with a known label: train0, train1" in (
        caplog.text
    )
    assert len(said) == PATIENTS["test"] * 5


def test_without_validation_tiles_all_epochs_are_trained_and_that_is_told(
    few: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _relabel(few, "val", None)
    with caplog.at_level("INFO"):
        said = _tuned(config_of(few, FEW))
    assert "no validation tiles" in caplog.text
    assert set(said["threshold"]) == {0.5}


def test_more_blocks_than_there_are_is_a_sentence(few: Path) -> None:
    with pytest.raises(StainsslError, match="has 4 blocks or stages"):
        run_stage("finetune", config_of(few, {**FEW, "tune": "last-9"}), "tuned", "net")


def test_each_verb_refuses_the_others_protocol(few: Path) -> None:
    with pytest.raises(StainsslError, match="protocol probe: run `probe`"):
        run_stage("finetune", config_of(few), "probed", "net")
    with pytest.raises(StainsslError, match="protocol fine-tune: run `finetune`"):
        run_stage("probe", config_of(few), "tuned", "net")


def test_an_encoder_that_is_trained_here_is_read_from_its_model(few: Path) -> None:
    given = config_of(few, FEW).model_dump(mode="json")
    given["encoders"]["net"] = {"method": "random", "backbone": "test_resnet", "input_size": SIZE}
    config = parse(given)
    run_stage("pretrain", config, "net")
    assert len(_tuned(config)) == PATIENTS["test"] * 5
    assert not BUILDERS["finetune"](config, "tuned", "net").tuning.freeze_norms


def _task(fine_tune: dict[str, Any] | None = None, **keys: Any) -> Config:
    task = {"level": "tile", "label": "x", "cohorts": ["d"], **keys}
    if fine_tune is not None:
        task["fine_tune"] = fine_tune
    return parse({"cohorts": {"d": {"demo": {}}}, "tasks": {"t": task}})


@pytest.mark.parametrize(
    ("keys", "sentence"),
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
def test_keys_that_do_nothing_are_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StainsslError, match=sentence):
        _task(**keys)


KEYS = [
    {"tune": "last-1"}, {"tune": "lora"}, {"epochs": 3}, {"patience": 2}, {"batch_size": 8},
    {"lr": 1e-3}, {"weight_decay": 0.1}, {"color": "none"}, {"stain_jitter": "none"},
    {"stain_jitter_strength": 0.1}, {"consistency": 0.5}, {"freeze_norms": False},
]  # fmt: skip


def test_each_key_is_another_job_and_of_that_task_alone() -> None:
    def params(task: dict[str, Any]) -> tuple[str, str]:
        config = _task(protocol="fine-tune", **task).model_dump(mode="json")
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


def test_the_seed_of_a_run_is_that_of_its_training() -> None:
    config = _task(protocol="fine-tune").model_dump(mode="json")
    config["encoders"] = {"e": {"weights": "resnet18", "seeds": [0, 1]}}
    first, second = (BUILDERS["finetune"](parse(config), "t", f"e.{seed}") for seed in (0, 1))
    assert first.param() != second.param()


@pytest.mark.parametrize(
    ("encoder", "tuning", "sentence"),
    [
        ({"features": "trident:x"}, {}, "without a network that tasks.tuned could fine-tune"),
        ({"weights": "resnet18", "preprocess": "reference"}, {"consistency": 1.0},
         "removes the stain that"),
    ],
    ids=["features", "preprocess"],
)  # fmt: skip
def test_encoders_that_cannot_be_tuned_so_are_refused(
    tmp_path: Path, encoder: dict[str, Any], tuning: dict[str, Any], sentence: str
) -> None:
    given = config_of(tmp_path, tuning).model_dump(mode="json")
    given["encoders"] = {"net": encoder}
    with pytest.raises(StainsslError, match=sentence):
        parse(given)
