"""`mil` writes a folder with predictions, metrics, models and attention of the test bags."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stainssl.config import Config, parse
from stainssl.errors import StainsslError
from stainssl.mil.predict import load_model
from stainssl.stages import mil, run_stage
from stainssl.stores.embeddings import write_embeddings
from stainssl.stores.tables import read_table

PATIENTS, DIM = 16, 8
QUICK = {"epochs": 15, "hidden": 8, "lr": 5e-3, "max_tiles": 16}


def _sheet() -> pd.DataFrame:
    """Patients 0-15, patient 0 of two slides; label by parity; patient 15 unknown."""
    rows = [
        {
            "slide_id": f"s{i}", "patient_id": f"p{i}", "path": f"s{i}.svs",
            "site": "ab"[i // 2 % 2], "her2": "" if i == 15 else str(i % 2),
        }
        for i in range(PATIENTS)
    ]  # fmt: skip
    return pd.DataFrame([*rows, rows[0] | {"slide_id": "s0-second"}])


def _write_parts(config: Config, sheet: pd.DataFrame, rng: np.random.Generator) -> None:
    """Embeddings in which a third of a positive slide's tiles is shifted; slide s3 has none."""
    counts = [0 if s == "s3" else 6 + i % 4 for i, s in enumerate(sheet["slide_id"])]
    blocks = []
    for n, label in zip(counts, sheet["her2"], strict=True):
        features = rng.normal(size=(n, DIM))
        features[: n // 3, :3] += 4.0 * (label == "1")
        blocks.append(features.astype(np.float16))
    blocks[1][4, 2] = np.nan  # a tile that could not be embedded
    index = np.concatenate([np.arange(n) for n in counts])
    path = config.paths.embeddings("clinic", "enc", "all-0000")
    write_embeddings(
        path, slide_id=sheet["slide_id"].tolist(), counts=counts, dim=DIM, blocks=blocks,
        tile=index.astype(np.int32), x=index * 256, y=index * 0, settings={},
    )  # fmt: skip


@pytest.fixture
def config(tmp_path, rng) -> Config:
    sheet = _sheet()
    sheet.to_csv(tmp_path / "slides.csv", index=False)
    split = {"kind": "cv", "folds": 3, "repeats": 2}
    made = parse(
        {
            "results": str(tmp_path / "results"),
            "slides": {"part_size": 100},
            "cohorts": {"clinic": {"sheet": str(tmp_path / "slides.csv"), "root": str(tmp_path)}},
            "encoders": {"enc": {"method": "random"}},
            "tasks": {
                level: {"level": level, "label": "her2", "cohorts": ["clinic"], "split": split}
                for level in ("patient", "slide")
            },
            "heads": {"mean": {"kind": "mean", **QUICK}, "abmil": {"kind": "abmil", **QUICK}},
        }
    )
    _write_parts(made, sheet, rng)
    for task in made.tasks:
        run_stage("folds", made, task)
    return made


@pytest.mark.parametrize("head", ["mean", "abmil"])
def test_each_patient_with_label_and_tiles_is_tested_once_per_repeat(config, head, caplog):
    caplog.set_level("INFO")
    run_stage("mil", config, "patient", "enc", head)
    folder = config.paths.mil("patient", "enc", head)
    predictions = read_table(folder / "predictions.parquet", "predictions")
    assert list(predictions) == [
        "patient_id", "slide_id", "site", "repeat", "fold", "y", "p_0", "p_1",
        "threshold", "threshold_rule_out",
    ]  # fmt: skip
    tested = predictions.groupby("repeat")["patient_id"].apply(sorted)
    known = sorted(f"p{i}" for i in range(PATIENTS) if i not in (3, 15))
    assert tested.tolist() == [known, known]
    assert set(predictions["slide_id"]) == {""}
    assert "1 patient(s) left out, none of their slides has a usable tile: p3" in caplog.text
    assert ("attention is not informative" in caplog.text) == (head == "mean")
    metrics = pd.read_csv(folder / "metrics.csv").query("metric == 'auroc' and group == 'all'")
    assert metrics["value"].item() > 0.7
    assert metrics["low"].item() <= metrics["value"].item()
    assert metrics["patients"].item() == 14


def test_a_slide_task_predicts_each_slide_separately(config):
    run_stage("mil", config, "slide", "enc", "mean")
    folder = config.paths.mil("slide", "enc", "mean")
    predictions = read_table(folder / "predictions.parquet", "predictions")
    assert {"s0", "s0-second"} <= set(predictions["slide_id"])
    assert set(predictions.query("patient_id == 'p0'")["slide_id"]) == {"s0", "s0-second"}


def test_attention_covers_the_valid_tiles_of_test_slides(config):
    run_stage("mil", config, "patient", "enc", "abmil")
    folder = config.paths.mil("patient", "enc", "abmil")
    table = read_table(folder / "attention.parquet", "attention")
    assert list(table) == ["slide_id", "tile", "x", "y", "attention"]
    assert set(table["slide_id"]) == {*(f"s{i}" for i in range(15) if i != 3), "s0-second"}
    assert table["attention"].between(0, 1).all()
    assert 4 not in table.query("slide_id == 's1'")["tile"].tolist()  # its embedding is NaN
    np.testing.assert_array_equal(table["x"], table["tile"] * 256)


def test_each_fold_writes_its_model(config):
    run_stage("mil", config, "patient", "enc", "abmil")
    models = config.paths.mil("patient", "enc", "abmil") / "models"
    names = {f"repeat{r}-fold{f}" for r in range(2) for f in range(3)}
    assert {path.stem for path in models.iterdir()} == names
    assert load_model(models / "repeat1-fold2").target.names == ("0", "1")


def test_run_twice_gives_the_same_predictions(config):
    file = config.paths.mil("patient", "enc", "abmil") / "predictions.parquet"
    run_stage("mil", config, "patient", "enc", "abmil")
    first = file.read_bytes()
    run_stage("mil", config, "patient", "enc", "abmil")
    assert file.read_bytes() == first


def test_a_leaked_patient_is_refused_and_nothing_is_written(config):
    path = config.paths.folds("patient")
    table = pd.read_csv(path)
    leaked = table[(table["role"] == "train") & (table["fold"] == 0)].head(1).assign(role="test")
    pd.concat([table, leaked]).to_csv(path, index=False)
    with pytest.raises(StainsslError, match=leaked["patient_id"].item()):
        run_stage("mil", config, "patient", "enc", "mean")
    assert not config.paths.mil("patient", "enc", "mean").exists()


def test_one_training_class_is_an_error_that_names_task_and_fold(config):
    path = config.paths.folds("patient")
    table = pd.read_csv(path)
    negative = table["patient_id"].str[1:].astype(int) % 2 == 0
    table[negative | (table["role"] == "test")].to_csv(path, index=False)
    with pytest.raises(StainsslError, match=r"tasks\.patient: repeat 0 fold 0: .*two classes"):
        run_stage("mil", config, "patient", "enc", "mean")


def test_auroc_is_finite_if_a_fold_has_one_test_class(config):
    path = config.paths.folds("patient")
    table = pd.read_csv(path)
    negative = table["patient_id"].str[1:].astype(int) % 2 == 0
    table[~((table["fold"] == 0) & (table["role"] == "test") & negative)].to_csv(path, index=False)
    run_stage("mil", config, "patient", "enc", "mean")
    metrics = pd.read_csv(config.paths.mil("patient", "enc", "mean") / "metrics.csv")
    assert np.isfinite(metrics.query("metric == 'auroc' and group == 'all'")["value"].item())


def test_a_tile_task_is_refused(config):
    tile = config.tasks["patient"].model_copy(update={"level": "tile"})
    changed = config.model_copy(update={"tasks": {"tumor": tile}})
    with pytest.raises(StainsslError, match=r"level tile.*`probe`"):
        run_stage("mil", changed, "tumor", "enc", "mean")


def test_missing_embeddings_are_named(config):
    with pytest.raises(StainsslError, match="other"):
        run_stage("mil", config, "patient", "other", "mean")


def test_cohorts_that_share_a_slide_name_are_refused(config):
    both = config.tasks["patient"].model_copy(update={"cohorts": ["clinic", "again"]})
    changed = config.model_copy(
        update={
            "cohorts": {**config.cohorts, "again": config.cohorts["clinic"]},
            "tasks": {"patient": both},
        }
    )
    with pytest.raises(StainsslError, match=r"same name.*s0"):
        run_stage("mil", changed, "patient", "enc", "mean")


def test_a_task_that_does_not_fit_in_memory_gives_the_same_predictions(config, monkeypatch):
    file = config.paths.mil("patient", "enc", "abmil") / "predictions.parquet"
    run_stage("mil", config, "patient", "enc", "abmil")
    first = file.read_bytes()
    monkeypatch.setattr(mil, "MAX_BYTES", 300)
    run_stage("mil", config, "patient", "enc", "abmil")
    assert file.read_bytes() == first


def _with_external(config: Config, rng: np.random.Generator, **columns: object) -> Config:
    """The config with a second cohort of other patients, with embeddings like the first's."""
    folder = config.paths.results.parent
    sheet = _sheet().assign(**columns) if columns else _sheet()
    sheet = sheet.assign(slide_id="x" + sheet["slide_id"], patient_id="x" + sheet["patient_id"])
    sheet.to_csv(folder / "other.csv", index=False)
    data = config.model_dump(mode="json")
    data["cohorts"]["other"] = {"sheet": str(folder / "other.csv"), "root": str(folder)}
    data["tasks"]["patient"]["external"] = ["other"]
    made = parse(data)
    counts = [8] * len(sheet)
    blocks = []
    for label in sheet["her2"]:
        features = rng.normal(size=(8, DIM))
        features[:3, :3] += 4.0 * (label == "1")
        blocks.append(features.astype(np.float16))
    index = np.concatenate([np.arange(8)] * len(sheet))
    write_embeddings(
        made.paths.embeddings("other", "enc", "all-0000"),
        slide_id=sheet["slide_id"].tolist(), counts=counts, dim=DIM, blocks=blocks,
        tile=index.astype(np.int32), x=index * 256, y=index * 0, settings={},
    )  # fmt: skip
    return made


def test_every_model_predicts_an_external_cohort_that_trains_none(config, rng):
    made = _with_external(config, rng)
    run_stage("mil", config, "patient", "enc", "mean")
    folder = made.paths.mil("patient", "enc", "mean")
    before = read_table(folder / "predictions.parquet", "predictions")
    run_stage("mil", made, "patient", "enc", "mean")
    pd.testing.assert_frame_equal(read_table(folder / "predictions.parquet", "predictions"), before)
    found = read_table(folder / "external-other.parquet", "predictions")
    assert found.groupby("repeat")["patient_id"].nunique().tolist() == [15] * 6  # 2 × 3 models
    metrics = pd.read_csv(folder / "external-other.csv").query("group == 'all'")
    auroc = metrics.set_index("metric").loc["auroc"]
    assert auroc["patients"] == 15
    assert auroc["value"] > 0.6


def test_an_external_class_without_training_data_is_named(config, rng):
    made = _with_external(config, rng, her2="2")
    with pytest.raises(StainsslError, match="without training data: 2; trained: 0, 1"):
        run_stage("mil", made, "patient", "enc", "mean")
