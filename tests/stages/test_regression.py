"""A regression task, from its sheet to the benchmark table and to new slides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from stainssl.cohort import check, task_summary
from stainssl.config import Config, parse
from stainssl.stages import predict, run_stage
from stainssl.stores.embeddings import write_embeddings
from stainssl.stores.tables import read_table
from stainssl.view.benchmarks import Benchmarks
from stainssl.view.records import Records

DIM, PATIENTS = 8, 28
QUICK = {"epochs": 25, "hidden": 8, "lr": 5e-3, "max_tiles": 16}
COHORTS = ("clinic", "other")


def _write(config: Config, cohort: str, sheet: pd.DataFrame, rng: np.random.Generator) -> None:
    """Write embeddings in which a third of a slide's tiles is shifted by its label."""
    blocks = []
    for word in sheet["ki67"]:
        features = rng.normal(size=(9, DIM))
        features[:3, :3] += 0.0 if word == "NA" else float(word.replace(",", ".")) / 10
        blocks.append(features.astype(np.float16))
    index = np.tile(np.arange(9), len(sheet))
    write_embeddings(
        config.paths.embeddings(cohort, "enc", "all-0000"),
        slide_id=sheet["slide_id"].tolist(), counts=[9] * len(sheet), dim=DIM, blocks=blocks,
        tile=index.astype(np.int32), x=index * 256, y=index * 0, settings={},
    )  # fmt: skip


def _sheet(cohort: str, rng: np.random.Generator) -> pd.DataFrame:
    numbers = np.round(rng.uniform(1, 60, PATIENTS), 1)
    return pd.DataFrame({
        "slide_id": [f"{cohort}{i}" for i in range(PATIENTS)],
        "patient_id": [f"{cohort}-p{i}" for i in range(PATIENTS)],
        "path": "x.svs", "site": ["ab"[i % 2] for i in range(PATIENTS)],
        "age": rng.integers(30, 80, PATIENTS).astype(str),
        "ki67": ["NA", *(str(n).replace(".", ",") for n in numbers[1:])],
    })  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Folds, two heads and the benchmark of a regression task with an external cohort."""
    folder, rng = tmp_path_factory.mktemp("numbers"), np.random.default_rng(3)
    sheets = {name: _sheet(name, rng) for name in COHORTS}
    for name, sheet in sheets.items():
        sheet.to_csv(folder / f"{name}.csv", index=False)
        (folder / "x.svs").touch()
    task = {
        "level": "patient", "kind": "regression", "label": "ki67", "cohorts": ["clinic"],
        "external": ["other"], "clinical": ["age"], "fusion": "late",
        "metrics": ["spearman", "mae"],
        "split": {"kind": "cv", "folds": 3},
    }  # fmt: skip
    config = parse({
        "results": str(folder / "results"),
        "slides": {"on_missing": "quarantine", "part_size": 100},
        "cohorts": {n: {"sheet": str(folder / f"{n}.csv"), "root": str(folder)} for n in COHORTS},
        "encoders": {"enc": {"method": "random"}}, "tasks": {"ki67": task},
        "heads": {"mean": {"kind": "mean", **QUICK}, "abmil": {"kind": "abmil", **QUICK}},
        "benchmarks": {"main": {"tasks": ["ki67"], "encoders": ["enc"], "heads": ["mean", "abmil"],
                                "robustness": False}},
    })  # fmt: skip
    for name, sheet in sheets.items():
        _write(config, name, sheet, rng)
    run_stage("folds", config, "ki67")
    for head in config.heads:
        run_stage("mil", config, "ki67", "enc", head)
    run_stage("benchmark", config, "main")
    return config


def test_predictions_correlate_with_the_labels(evaluated):
    folder = evaluated.paths.mil("ki67", "enc", "mean")
    table = read_table(folder / "predictions.parquet", "predictions")
    assert list(table) == [
        "patient_id", "slide_id", "site", "repeat", "fold", "y", "value",
    ]  # fmt: skip
    assert len(table) == PATIENTS - 1  # one label is unknown
    assert spearmanr(table["y"], table["value"]).statistic > 0.7
    metrics = pd.read_csv(folder / "metrics.csv").query("group == 'all'").set_index("metric")
    assert list(metrics.index) == ["pearson", "spearman", "mae", "r2"]
    assert metrics.loc["mae", "value"] == pytest.approx((table["y"] - table["value"]).abs().mean())
    assert (metrics["low"] < metrics["value"]).all()
    assert (metrics["value"] < metrics["high"]).all()


def test_an_external_cohort_is_predicted_by_every_model(evaluated):
    folder = evaluated.paths.mil("ki67", "enc", "mean")
    found = read_table(folder / "external-other.parquet", "predictions")
    assert found.groupby("repeat").size().tolist() == [PATIENTS - 1] * 3
    metrics = pd.read_csv(folder / "external-other.csv").query("group == 'all'")
    assert metrics.set_index("metric").loc["spearman", "value"] > 0.6


def test_the_table_has_metrics_baselines_and_comparisons(evaluated):
    folder = evaluated.paths.benchmark("main")
    long = pd.read_csv(folder / "table.csv")
    assert {"mean of training", "site only", "clinical only", "enc"} == set(long["encoder"])
    baseline = long.query("encoder == 'mean of training' and group == 'all'").set_index("metric")
    own = long.query("encoder == 'enc' and head == 'mean' and task == 'ki67' and group == 'all'")
    own = own.set_index("metric")
    assert baseline.loc["spearman", "value"] == 0
    assert baseline.loc["r2", "value"] <= 0
    assert own.loc["mae", "value"] < baseline.loc["mae", "value"]
    assert set(long.query("task == 'ki67' and encoder == 'enc'")["head"]) == {
        "mean", "abmil", "mean + clinical", "abmil + clinical",
    }  # fmt: skip
    fused = long.query("head == 'mean + clinical' and group == 'all' and metric == 'mae'")
    assert own.loc["mae", "value"] < fused["value"].item() < baseline.loc["mae", "value"]
    compared = pd.read_csv(folder / "comparisons.csv")
    assert set(compared["metric"]) == {"spearman", "mae"}
    assert "clinical only + columns" in {*compared["first"], *compared["second"]}
    assert set(compared["task"]) == {"ki67", "ki67 on other"}
    text = (folder / "table.md").read_text()
    assert "ki67: Spearman (27 patients)" in text
    assert "ki67: MAE (27 patients)" in text
    assert "predicted for every patient" in text
    assert "ki67, spearman: enc + mean + clinical minus clinical only: " in text
    assert "## By site" in text
    assert "R$^2$" in (folder / "table.tex").read_text()
    assert (folder / "table.html").stat().st_size > 0
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert drawn == {"scatter.png", "forest.png"}  # figures without content are not drawn


def test_the_viewer_sorts_cases_by_error(evaluated):
    benchmarks = Benchmarks(Records(evaluated))
    columns = pd.DataFrame(benchmarks.table("main")["columns"])
    assert "mae" in set(columns["metric"])
    assert columns.query("task == 'ki67' and run == 'enc' and head == 'mean'")["answer"].all()
    found = benchmarks.predictions("ki67", "enc", "mean")
    cases = found["cases"]
    error = np.array(cases["predicted"]) - np.array(cases["truth"])
    np.testing.assert_allclose(cases["error"], error, atol=1e-2)  # rounded for the page
    assert (np.diff(np.abs(cases["error"])) <= 0).all()
    assert found["units"] == len(error) == PATIENTS - 1
    metrics = pd.read_csv(evaluated.paths.mil("ki67", "enc", "mean") / "metrics.csv")
    mae = metrics.query("metric == 'mae' and group == 'all'")["value"].item()
    assert np.abs(error).mean() == pytest.approx(mae, abs=1e-2)
    assert all(len(slides) == 1 for slides in cases["slides"])


def test_checks_summarize_the_label_and_report_text_cells(evaluated, tmp_path):
    lines = task_summary(evaluated, "ki67")
    assert lines[0].startswith("numbers: ")
    assert lines[-1].startswith("unknown: 'NA'")
    assert not [one for one in check(evaluated) if "tasks" in one]
    sheet = _sheet("clinic", np.random.default_rng(0))
    sheet.loc[3, "ki67"] = "high"
    sheet.to_csv(tmp_path / "text.csv", index=False)
    data = evaluated.model_dump(mode="json")
    data["cohorts"]["clinic"]["sheet"] = str(tmp_path / "text.csv")
    (problem,) = [one for one in check(parse(data)) if "tasks" in one]
    assert "slide clinic3: 'high'" in problem
    data["cohorts"]["other"]["sheet"] = str(tmp_path / "text.csv")
    data["cohorts"]["clinic"]["sheet"] = evaluated.model_dump(mode="json")["cohorts"]["clinic"][
        "sheet"
    ]
    assert any("tasks.ki67.external" in one and "'high'" in one for one in check(parse(data)))


@pytest.mark.xdist_group("trained")
def test_predict_gives_values_of_new_slides_with_an_interval(trained, tmp_path):
    data = trained.config.model_dump(mode="json")
    own = {"level": "patient", "kind": "regression", "label": "her2", "cohorts": ["clinic"],
           "split": {"kind": "cv", "folds": 2}}  # fmt: skip
    config = parse(data | {"tasks": data["tasks"] | {"number": own}})
    run_stage("folds", config, "number")
    run_stage("mil", config, "number", "enc", "abmil")
    sheet = tmp_path / "new.csv"
    trained.rows("a-001-1", "a-001-2", "b-003-1").to_csv(sheet, index=False)
    predict.run(config, "number", "enc", "abmil", sheet, trained.root, tmp_path / "out", False)
    predictions = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert not {"predicted", "threshold"} & set(predictions)
    assert (predictions["low"] <= predictions["value"]).all()
    assert (predictions["value"] <= predictions["high"]).all()
    by_model = read_table(tmp_path / "out" / "by-model.parquet", "predictions")
    evaluated_path = config.paths.mil("number", "enc", "abmil") / "predictions.parquet"
    both = read_table(evaluated_path, "predictions").merge(
        by_model, on=["patient_id", "repeat", "fold"], suffixes=("", "_new")
    )
    assert len(both) == 2
    np.testing.assert_array_equal(both["value"], both["value_new"])
    mean = by_model.groupby("patient_id")["value"].mean()
    np.testing.assert_allclose(predictions.set_index("patient_id")["value"], mean, rtol=1e-4)
