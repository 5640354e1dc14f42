"""A task of several labels, from its sheets to the benchmark table, new slides and the viewer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stainssl.cohort import check, task_summary
from stainssl.config import parse
from stainssl.stages import export, predict, run_stage
from stainssl.stores.embeddings import write_embeddings
from stainssl.stores.tables import read_table
from stainssl.view.benchmarks import Benchmarks
from stainssl.view.records import Records
from tests.stages.test_regression import COHORTS, DIM, QUICK

PATIENTS = 48
LABELS = ["er", "her2"]
UNKNOWN = {"er": ["NA", "n/a"], "her2": ["equivocal", "?", "NA"]}  # values of the first patients


def _sheet(cohort: str, rng: np.random.Generator) -> pd.DataFrame:
    sheet = pd.DataFrame({
        "slide_id": [f"{cohort}{i}" for i in range(PATIENTS)],
        "patient_id": [f"{cohort}-p{i}" for i in range(PATIENTS)],
        "path": "x.svs", "site": ["ab"[i % 2] for i in range(PATIENTS)],
        "age": rng.integers(30, 80, PATIENTS).astype(str),
        "er": rng.permutation(["pos", "neg"] * (PATIENTS // 2)),
        "her2": rng.permutation(["neg", "neg", "pos"] * (PATIENTS // 3)),
    })  # fmt: skip
    for label, words in UNKNOWN.items():
        sheet.loc[: len(words) - 1, label] = words
    return sheet


def _write(config, cohort: str, sheet: pd.DataFrame, rng: np.random.Generator) -> None:
    """Write embeddings in which each label shifts a third of the tiles along its own features."""
    blocks = []
    for row in sheet.itertuples():
        features = rng.normal(size=(9, DIM))
        features[:3, :3] += 2.0 * (row.er == "pos")
        features[:3, 4:7] += 2.0 * (row.her2 == "pos")
        blocks.append(features.astype(np.float16))
    index = np.tile(np.arange(9), len(sheet))
    write_embeddings(
        config.paths.embeddings(cohort, "enc", "all-0000"),
        slide_id=sheet["slide_id"].tolist(), counts=[9] * len(sheet), dim=DIM, blocks=blocks,
        tile=index.astype(np.int32), x=index * 256, y=index * 0, settings={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A task of two labels, one of a single label, and an external cohort."""
    folder, rng = tmp_path_factory.mktemp("several"), np.random.default_rng(4)
    sheets = {name: _sheet(name, rng) for name in COHORTS}
    for name, sheet in sheets.items():
        sheet.to_csv(folder / f"{name}.csv", index=False)
    (folder / "x.svs").touch()
    shared = {
        "level": "patient", "na": ["equivocal"], "cohorts": ["clinic"], "external": ["other"],
        "metrics": ["auroc", "sensitivity"], "split": {"kind": "cv", "folds": 3},
    }  # fmt: skip
    config = parse({
        "results": str(folder / "results"),
        "slides": {"part_size": 100},
        "cohorts": {n: {"sheet": str(folder / f"{n}.csv"), "root": str(folder)} for n in COHORTS},
        "encoders": {"enc": {"method": "random"}},
        "tasks": {
            "both": {"labels": LABELS, "clinical": ["age"], "fusion": "late", **shared},
            "alone": {"label": "her2", **shared},
            "gated": {"labels": LABELS, "clinical": ["age"], "fusion": "gated", **shared},
        },
        "heads": {"mean": {"kind": "mean", **QUICK}, "dsmil": {"kind": "dsmil", **QUICK}},
        "benchmarks": {"main": {"tasks": ["both", "alone"], "encoders": ["enc"],
                                "heads": ["mean", "dsmil"], "robustness": False},
                       "fused": {"tasks": ["gated"], "encoders": ["enc"], "heads": ["mean"],
                                 "robustness": False}},
    })  # fmt: skip
    for name, sheet in sheets.items():
        _write(config, name, sheet, rng)
    for task in config.tasks:
        run_stage("folds", config, task)
        for head in ["mean"] if task == "gated" else config.heads:
            run_stage("mil", config, task, "enc", head)
    for name in config.benchmarks:
        run_stage("benchmark", config, name)
    return config


@pytest.mark.parametrize("label", LABELS)
def test_each_label_is_evaluated_on_the_patients_with_a_known_value(evaluated, label):
    folder = evaluated.paths.mil("both", "enc", "mean", label)
    table = read_table(folder / "predictions.parquet", "predictions")
    assert len(table) == PATIENTS - len(UNKNOWN[label])
    assert set(table["y"]) == {"neg", "pos"}
    assert {"p_neg", "p_pos", "threshold"} <= set(table)
    for name in ("metrics", "external-other"):
        metrics = pd.read_csv(folder / f"{name}.csv").query("group == 'all'").set_index("metric")
        assert metrics.loc["auroc", "value"] > 0.75
        assert metrics.loc["auroc", "low"] < metrics.loc["auroc", "value"]
        assert metrics.loc["auroc", "patients"] == PATIENTS - len(UNKNOWN[label])


def test_one_model_of_several_labels_is_about_as_good_as_one_per_label(evaluated):
    long = pd.read_csv(evaluated.paths.benchmark("main") / "table.csv")
    auroc = long.query("metric == 'auroc' and group == 'all' and head == 'mean'")
    value = auroc.set_index("task")["value"]
    assert value["both.her2"] > value["alone"] - 0.1


def test_the_table_has_a_column_baselines_and_comparisons_of_each_label(evaluated):
    folder = evaluated.paths.benchmark("main")
    text = (folder / "table.md").read_text()
    for label, words in UNKNOWN.items():
        assert f"both.{label}: AUROC ({PATIENTS - len(words)} patients)" in text
        assert f"both.{label} on other: AUROC" in text
        assert f"both.{label}, auroc: enc + mean + clinical minus clinical only:" in text
    long = pd.read_csv(folder / "table.csv")
    assert {"site only", "clinical only", "enc"} == set(long.query("task == 'both.er'")["encoder"])
    compared = pd.read_csv(folder / "comparisons.csv")
    assert {"both.er", "both.her2"} < set(compared["task"])
    for name in ("roc.png", "calibration.png", "forest.png"):
        assert (folder / "figures" / name).stat().st_size > 0


def test_gated_fusion_has_rows_for_image_clinical_and_both(evaluated):
    folder = evaluated.paths.benchmark("fused")
    long = pd.read_csv(folder / "table.csv").query("metric == 'auroc' and group == 'all'")
    for label in LABELS:
        rows = long[long["task"] == f"gated.{label}"].set_index(["encoder", "head"])["value"]
        assert {("enc", "mean"), ("enc", "mean + clinical"), ("clinical only", "columns")} < {
            *rows.index
        }
        assert rows["enc", "mean + clinical"] > 0.7
        assert rows["enc", "mean + clinical"] != rows["enc", "mean"]
    assert not any("on other" in task for task in long.query("head == 'mean + clinical'")["task"])
    text = (folder / "table.md").read_text()
    assert "gated.er, auroc: enc + mean + clinical minus clinical only:" in text
    kept = evaluated.paths.mil("gated", "enc", "mean", "er") / "clinical"
    assert len(read_table(kept / "predictions.parquet", "predictions")) == PATIENTS - 2


def test_attention_and_exported_labels(evaluated, tmp_path):
    folder = evaluated.paths.mil("both", "enc", "mean")
    attention = read_table(folder / "attention.parquet", "attention")
    assert attention["slide_id"].nunique() == PATIENTS - 2  # two patients have no known label
    assert set(export._labels(evaluated, "clinic")) == set(LABELS)


def test_the_checks_and_the_summary_cover_each_label(evaluated):
    lines = task_summary(evaluated, "both")
    assert lines[0].startswith("er: classes: neg (")
    assert any(line.startswith("her2: unknown: '?'") for line in lines)
    assert not [one for one in check(evaluated) if "tasks" in one]


def test_check_reports_an_unknown_class_in_an_external_sheet(evaluated, tmp_path):
    sheet = _sheet("other", np.random.default_rng(0))
    sheet.loc[5, "her2"] = "maybe"
    sheet.to_csv(tmp_path / "strange.csv", index=False)
    data = evaluated.model_dump(mode="json")
    data["cohorts"]["other"]["sheet"] = str(tmp_path / "strange.csv")
    found = [one for one in check(parse(data)) if "tasks.both.her2.external" in one]
    assert "'maybe' (1)" in found[0]


def test_the_viewer_has_curves_and_cases_of_each_label(evaluated):
    records = Records(evaluated)
    benchmarks = Benchmarks(records)
    columns = pd.DataFrame(benchmarks.table("main")["columns"])
    assert columns.query("task == 'both.er' and encoder == 'enc' and head == 'mean'")[
        "answer"
    ].all()
    found = benchmarks.predictions("both.er", "enc", "mean")
    assert found["classes"] == ["neg", "pos"]
    assert found["units"] == PATIENTS - len(UNKNOWN["er"])
    assert "roc" in found
    names = [stored.name for stored in records.stored_predictions("clinic")]
    assert {"both.er~enc~mean", "both.her2~enc~mean"} < set(names)
    predictions = records.predictions("clinic", "both.er~enc~mean")
    assert predictions["classes"] == ["neg", "pos"]


@pytest.mark.xdist_group("trained")
def test_predict_gives_every_label_of_new_slides(trained, tmp_path):
    data = trained.config.model_dump(mode="json")
    own = {"level": "patient", "labels": ["her2", "er"], "cohorts": ["clinic"],
           "split": {"kind": "cv", "folds": 2}}  # fmt: skip
    known = trained.sheet.assign(er=trained.sheet["her2"].map({"0": "pos", "1": "neg"}))
    known.to_csv(tmp_path / "known.csv", index=False)
    data["cohorts"]["clinic"]["sheet"] = str(tmp_path / "known.csv")
    config = parse(data | {"tasks": data["tasks"] | {"two": own}})
    run_stage("folds", config, "two")
    run_stage("mil", config, "two", "enc", "abmil")
    sheet = tmp_path / "new.csv"
    trained.rows("a-001-1", "a-001-2", "b-003-1").to_csv(sheet, index=False)
    out = tmp_path / "out"
    predict.run(config, "two", "enc", "abmil", sheet, trained.root, out, False)
    predictions = pd.read_csv(out / "predictions.csv")
    assert predictions[["patient_id", "label"]].to_numpy().tolist() == [
        [patient, label] for label in ("her2", "er") for patient in ("a-001", "b-003")
    ]
    of_er = predictions[predictions["label"] == "er"]
    assert set(of_er["predicted"]) <= {"neg", "pos"}
    assert of_er["p_1"].isna().all()
    assert predictions["note"].str.contains("trained on a patient with this id").all()
    by_model = read_table(out / "by-model.parquet", "predictions").query("label == 'her2'")
    evaluated_path = config.paths.mil("two", "enc", "abmil", "her2") / "predictions.parquet"
    both = read_table(evaluated_path, "predictions").merge(
        by_model, on=["patient_id", "repeat", "fold"], suffixes=("", "_new")
    )
    np.testing.assert_array_equal(both["p_1"], both["p_1_new"])
    records = Records(config.model_copy(update={"results": out}))
    columns = records._by_unit(
        next(iter(records._possible_predictions("clinic"))), "clinic", "patient_id"
    )
    assert {"p_her2: 1", "p_er: pos"} <= set(columns)
