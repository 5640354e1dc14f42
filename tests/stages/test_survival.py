"""A survival task, from its sheet to the benchmark table and to new slides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index

from stainssl.cohort import check, task_summary
from stainssl.config import Config, parse
from stainssl.evaluation.follow_up import follow_up
from stainssl.mil.predict import load_models
from stainssl.stages import predict, run_stage
from stainssl.stores.embeddings import write_embeddings
from stainssl.stores.tables import read_table
from stainssl.view.benchmarks import Benchmarks
from stainssl.view.records import Records

DIM, PATIENTS = 8, 48
QUICK = {"epochs": 25, "hidden": 8, "lr": 5e-3, "max_tiles": 16}
COHORTS = ("clinic", "other")


def _sheet(cohort: str, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    hazard = rng.normal(size=PATIENTS) * 1.5
    time = rng.exponential(30 * np.exp(-hazard))
    censoring = rng.exponential(60, PATIENTS)
    sheet = pd.DataFrame({
        "slide_id": [f"{cohort}{i}" for i in range(PATIENTS)],
        "patient_id": [f"{cohort}-p{i}" for i in range(PATIENTS)],
        "path": "x.svs", "site": ["ab"[i % 2] for i in range(PATIENTS)],
        "age": np.round(60 + 8 * hazard + 4 * rng.normal(size=PATIENTS)).astype(int).astype(str),
        "os_months": [f"{t:.1f}".replace(".", ",") for t in np.minimum(time, censoring)],
        "os_status": np.where(time <= censoring, "1:DECEASED", "0:LIVING"),
    })  # fmt: skip
    sheet.loc[0, "os_months"] = "[Not Available]"
    return sheet, hazard


def _write(config: Config, cohort: str, hazard: np.ndarray, rng: np.random.Generator) -> None:
    """Write embeddings in which a third of a slide's tiles is shifted by its patient's hazard."""
    blocks = []
    for strength in hazard:
        features = rng.normal(size=(9, DIM))
        features[:3, :3] += 2 * strength
        blocks.append(features.astype(np.float16))
    index = np.tile(np.arange(9), len(hazard))
    write_embeddings(
        config.paths.embeddings(cohort, "enc", "all-0000"),
        slide_id=[f"{cohort}{i}" for i in range(PATIENTS)], counts=[9] * PATIENTS, dim=DIM,
        blocks=blocks, tile=index.astype(np.int32), x=index * 256, y=index * 0, settings={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Folds, two heads and the benchmark of a survival task with an external cohort."""
    folder, rng = tmp_path_factory.mktemp("survival"), np.random.default_rng(3)
    task = {
        "level": "patient", "kind": "survival", "time": "os_months", "event": "os_status",
        "classes": {"event": ["1:DECEASED"], "censored": ["0:LIVING"]}, "cohorts": ["clinic"],
        "external": ["other"], "clinical": ["age"], "fusion": "late",
        "metrics": ["c_index", "integrated_brier"],
        "split": {"kind": "cv", "folds": 3, "repeats": 2},
    }  # fmt: skip
    config = parse({
        "results": str(folder / "results"),
        "slides": {"part_size": PATIENTS},
        "cohorts": {n: {"sheet": str(folder / f"{n}.csv"), "root": str(folder)} for n in COHORTS},
        "encoders": {"enc": {"method": "random"}}, "tasks": {"os": task},
        "heads": {"mean": {"kind": "mean", **QUICK}, "abmil": {"kind": "abmil", **QUICK}},
        "benchmarks": {"main": {"tasks": ["os"], "encoders": ["enc"], "heads": ["mean", "abmil"],
                                "robustness": False}},
    })  # fmt: skip
    (folder / "x.svs").touch()
    for name in COHORTS:
        sheet, hazard = _sheet(name, rng)
        sheet.to_csv(folder / f"{name}.csv", index=False)
        _write(config, name, hazard, rng)
    run_stage("folds", config, "os")
    for head in config.heads:
        run_stage("mil", config, "os", "enc", head)
    run_stage("benchmark", config, "main")
    return config


def test_risks_rank_test_patients_and_survival_curves_decrease(evaluated):
    folder = evaluated.paths.mil("os", "enc", "mean")
    table = read_table(folder / "predictions.parquet", "predictions")
    curves = [column for column in table if column.startswith("s_")]
    assert list(table) == [
        "patient_id", "slide_id", "site", "repeat", "fold", "y", "risk", *curves, "threshold",
    ]  # fmt: skip
    assert len(table) == 2 * (PATIENTS - 1)  # one time is unknown
    survival = table[curves].to_numpy()
    assert len(curves) == 9
    assert (np.diff(survival, axis=1) <= 0).all()
    assert (survival <= 1).all()
    horizon = float(curves[-1].removeprefix("s_"))
    assert table["risk"].between(0, horizon).all()
    time, event = follow_up(table["y"])
    each = [
        concordance_index(time[rows], -table["risk"].to_numpy()[rows], event[rows])
        for rows in table.groupby(["repeat", "fold"]).indices.values()
    ]
    metrics = pd.read_csv(folder / "metrics.csv").query("group == 'all'").set_index("metric")
    assert list(metrics.index) == [
        "c_index", "c_index_uno", "auroc_time", "integrated_brier", "events",
    ]  # fmt: skip
    assert metrics.loc["c_index", "value"] == pytest.approx(np.mean(each), abs=0.03)
    assert metrics.loc["c_index", "value"] > 0.65
    assert metrics.loc["auroc_time", "value"] > 0.7
    assert (metrics["low"] < metrics["value"]).all()
    assert (metrics["value"] < metrics["high"]).all()


def test_thresholds_of_risk_are_those_of_each_folds_model(evaluated):
    folder = evaluated.paths.mil("os", "enc", "mean")
    table = read_table(folder / "predictions.parquet", "predictions")
    by_fold = table.groupby(["repeat", "fold"])["threshold"]
    assert (by_fold.nunique() == 1).all()
    assert table["threshold"].nunique() == 6
    models = load_models(folder / "models")
    assert by_fold.first().to_dict() == pytest.approx(
        {key: model.thresholds["threshold"] for key, model in models.items()}
    )


def test_an_external_cohort_is_predicted_at_the_same_times(evaluated):
    folder = evaluated.paths.mil("os", "enc", "mean")
    found = read_table(folder / "external-other.parquet", "predictions")
    own = read_table(folder / "predictions.parquet", "predictions")
    assert [c for c in found if c.startswith("s_")] == [c for c in own if c.startswith("s_")]
    assert found.groupby("repeat").size().tolist() == [PATIENTS - 1] * 6
    metrics = pd.read_csv(folder / "external-other.csv").query("group == 'all'")
    assert metrics.set_index("metric").loc["c_index", "value"] > 0.65


def test_the_table_has_metrics_baselines_and_comparisons(evaluated):
    folder = evaluated.paths.benchmark("main")
    long = pd.read_csv(folder / "table.csv").query("group == 'all'")
    baseline = "Kaplan-Meier of training"
    assert {baseline, "site only", "clinical only", "enc"} == set(long["encoder"])
    value = long.query("task == 'os'").set_index(["encoder", "head", "metric"])["value"]
    assert value[baseline, "columns", "c_index"] == 0.5
    assert value["clinical only", "columns", "c_index"] > 0.65
    brier = [
        value[encoder, "columns", "integrated_brier"] for encoder in ("clinical only", baseline)
    ]
    assert brier[0] < brier[1]
    assert value["enc", "mean", "integrated_brier"] < brier[1]
    compared = pd.read_csv(folder / "comparisons.csv")
    assert set(compared["metric"]) == {"c_index", "integrated_brier"}
    assert set(compared["task"]) == {"os", "os on other"}
    assert compared["p_holm"].notna().all()
    text = (folder / "table.md").read_text()
    events = int(follow_up(_follow_ups(evaluated))[1].sum())
    assert f"os: Harrell's C (47 patients, {events} events)" in text
    assert "os: times are in the unit of the sheet's column 'os_months'." in text
    assert "Uno's C and" in text
    assert "predicted for every patient" in text
    assert "## By site" in text
    for name in ("figures/survival.png", "figures/forest.png", "table.html", "table.tex"):
        assert (folder / name).stat().st_size > 0


def _follow_ups(config):
    folder = config.paths.mil("os", "enc", "mean")
    table = read_table(folder / "predictions.parquet", "predictions")
    return table.drop_duplicates("patient_id")["y"]


def test_the_viewer_has_the_curves_and_cases_of_both_groups(evaluated):
    benchmarks = Benchmarks(Records(evaluated))
    columns = pd.DataFrame(benchmarks.table("main")["columns"])
    assert columns.query("task == 'os' and run == 'enc' and head == 'mean'")["answer"].all()
    found = benchmarks.predictions("os", "enc", "mean")
    cases = pd.DataFrame({k: v for k, v in found["cases"].items() if k != "slides"})
    assert cases["risk"].is_monotonic_decreasing
    assert found["units"] == len(cases) == PATIENTS - 1
    for name, group in found["survival"].items():
        of_group = cases[cases["predicted"] == name]
        time, event = follow_up(of_group["truth"])
        assert (group["units"], group["events"]) == (len(of_group), event.sum())
        assert group["at_risk"][0] == len(of_group)
        curve = KaplanMeierFitter().fit(time, event)
        expected = curve.survival_function_at_times(group["time"]).to_numpy()
        np.testing.assert_allclose(group["survival"], expected)
        assert group["unit"] == "os_months"


def test_cox_loss_with_gated_clinical_columns(evaluated):
    data = evaluated.model_dump(mode="json")
    data["tasks"]["cox"] = {**data["tasks"]["os"], "hazard": "cox", "fusion": "gated"}
    data["benchmarks"]["cox"] = {**data["benchmarks"]["main"], "tasks": ["cox"], "heads": ["mean"]}
    config = parse(data)
    run_stage("folds", config, "cox")
    run_stage("mil", config, "cox", "enc", "mean")
    run_stage("benchmark", config, "cox")
    folder = config.paths.mil("cox", "enc", "mean")
    table = read_table(folder / "predictions.parquet", "predictions")
    assert (np.diff(table[[c for c in table if c.startswith("s_")]].to_numpy(), axis=1) <= 0).all()
    long = pd.read_csv(config.paths.benchmark("cox") / "table.csv").query("group == 'all'")
    values = long.query("task == 'cox'").set_index(["encoder", "head", "metric"])["value"]
    baseline = values["Kaplan-Meier of training", "columns", "integrated_brier"]
    for head in ("mean", "mean + clinical"):
        assert values["enc", head, "c_index"] > 0.6
        assert values["enc", head, "integrated_brier"] < baseline
    assert values["enc", "mean", "c_index"] != values["enc", "mean + clinical", "c_index"]
    assert "cox on other" in set(long["task"])


def test_checks_count_patients_events_and_censored(evaluated):
    first, unknown, *_ = task_summary(evaluated, "os")
    event = follow_up(_follow_ups(evaluated))[1]
    assert f"{event.sum()} events, {(~event).sum()} censored, median follow-up " in first
    assert "('os_months') (47 patients, 47 slides)" in first
    assert unknown.startswith("unknown: os_months '[Not Available]' (")
    assert "(1 patient, 1 slide)" in unknown
    assert not [one for one in check(evaluated) if "tasks" in one]


def _problems(evaluated, tmp_path, cohort="clinic", task=(), **cells):
    """Problems that `check` reports of the task after changes of cells or of the task."""
    data = evaluated.model_dump(mode="json")
    sheet = pd.read_csv(data["cohorts"][cohort]["sheet"], dtype=str, keep_default_na=False)
    for column, values in cells.items():
        for row, value in values.items():
            sheet.loc[row, column] = value
    sheet.to_csv(tmp_path / "changed.csv", index=False)
    data["cohorts"][cohort]["sheet"] = str(tmp_path / "changed.csv")
    data["tasks"]["os"] |= dict(task)
    return "\n".join(one for one in check(parse(data)) if "tasks" in one)


def test_check_reports_labels_that_cannot_be_learnt(evaluated, tmp_path):
    problems = _problems(evaluated, tmp_path, os_months={3: "-4", 4: "long"})
    assert "is not in 2 row(s), slide clinic3: '-4', slide clinic4: 'long'" in problems
    problems = _problems(evaluated, tmp_path, os_status={3: "Dead", 4: "Dead"})
    assert "neither an event (1, true, yes) nor censored (0, false, no): 'Dead' (2)" in problems
    problems = _problems(evaluated, tmp_path, os_status=dict.fromkeys(range(PATIENTS), "0"))
    assert "none of 47 patients has an event of 'os_status' after time 0" in problems
    problems = _problems(evaluated, tmp_path, patient_id={5: "clinic-p4"})
    assert "1 patient(s) have two follow-ups" in problems
    assert "clinic-p4 (" in problems
    few = {row: "no" for row in range(PATIENTS) if row not in (4, 9)}
    problems = _problems(evaluated, tmp_path, os_status=few | {4: "yes", 9: "yes"})
    assert "2 event(s) of 'os_status', fewer than folds (3)" in problems
    problems = _problems(evaluated, tmp_path, cohort="other", os_months={7: "x"})
    assert "tasks.os.external" in problems
    assert "slide other7: 'x'" in problems
    alone = {"split": {"kind": "leave-one-out"}}
    assert "no fold has a comparable pair" in _problems(evaluated, tmp_path, task=alone)
    assert "tasks.os.time: " in _problems(evaluated, tmp_path, task={"time": "os_month"})


@pytest.mark.xdist_group("trained")
def test_predict_gives_risk_and_survival_of_new_slides_with_intervals(trained, tmp_path):
    data = trained.config.model_dump(mode="json")
    own = {"level": "patient", "kind": "survival", "time": "months", "event": "died",
           "cohorts": ["clinic"], "split": {"kind": "cv", "folds": 2}}  # fmt: skip
    sheet = pd.read_csv(data["cohorts"]["clinic"]["sheet"], dtype=str, keep_default_na=False)
    rank = sheet["patient_id"].rank(method="dense").astype(int)
    sheet = sheet.assign(months=rank.astype(str), died=(rank % 3 > 0).astype(int).astype(str))
    sheet.to_csv(tmp_path / "followed.csv", index=False)
    data["cohorts"]["clinic"] |= {"sheet": str(tmp_path / "followed.csv")}
    config = parse(data | {"tasks": data["tasks"] | {"os": own}})
    run_stage("folds", config, "os")
    run_stage("mil", config, "os", "enc", "abmil")
    trained.rows("a-001-1", "a-001-2", "b-003-1").to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "out"
    predict.run(config, "os", "enc", "abmil", tmp_path / "new.csv", trained.root, out, False)
    predictions = pd.read_csv(out / "predictions.csv").set_index("patient_id")
    assert (predictions["low"] <= predictions["risk"]).all()
    assert (predictions["risk"] <= predictions["high"]).all()
    times = [column.removeprefix("s_") for column in predictions if column.startswith("s_")]
    assert times
    assert {f"low_{t}" for t in times} | {f"high_{t}" for t in times} <= set(predictions)
    high = predictions["risk"] >= predictions["threshold"]
    assert predictions["predicted"].tolist() == np.where(high, "high", "low").tolist()
    by_model = read_table(out / "by-model.parquet", "predictions")
    evaluated_path = config.paths.mil("os", "enc", "abmil") / "predictions.parquet"
    both = read_table(evaluated_path, "predictions").merge(
        by_model, on=["patient_id", "repeat", "fold"], suffixes=("", "_new")
    )
    assert len(both) == 2
    np.testing.assert_array_equal(both["risk"], both["risk_new"])
