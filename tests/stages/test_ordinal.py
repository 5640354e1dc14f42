"""An ordinal task, from its sheet to the benchmark table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stainssl.cohort import check, task_summary
from stainssl.config import parse
from stainssl.mil.predict import load_models
from stainssl.stages import run_stage
from stainssl.stages.predict import OUT_OF_RANGE_NOTES, summary
from stainssl.stores.tables import read_table
from stainssl.view.benchmarks import Benchmarks
from stainssl.view.records import Records
from tests.stages.test_regression import COHORTS, PATIENTS, QUICK, _sheet, _write

CLASSES = {"low": ["l"], "middle": ["m"], "high": ["h"]}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A trained task of a number in three classes, with an external cohort."""
    folder, rng = tmp_path_factory.mktemp("ordered"), np.random.default_rng(5)
    sheets = {}
    for name in COHORTS:
        sheet = _sheet(name, rng)
        number = pd.to_numeric(sheet["ki67"].str.replace(",", "."), errors="coerce")
        thirds = pd.cut(number, [0, 20, 40, 60], labels=list("lmh")).astype(object).fillna("NA")
        sheets[name] = sheet.assign(third=thirds)
        sheets[name].to_csv(folder / f"{name}.csv", index=False)
    (folder / "x.svs").touch()
    task = {
        "level": "patient", "kind": "ordinal", "label": "third", "classes": CLASSES,
        "cohorts": ["clinic"], "external": ["other"], "metrics": ["kappa", "auroc_cuts"],
        "clinical": ["age"], "split": {"kind": "cv", "folds": 3},
    }  # fmt: skip
    config = parse({
        "results": str(folder / "results"),
        "slides": {"part_size": 100},
        "cohorts": {n: {"sheet": str(folder / f"{n}.csv"), "root": str(folder)} for n in COHORTS},
        "encoders": {"enc": {"method": "random"}}, "tasks": {"third": task},
        "heads": {"mean": {"kind": "mean", **QUICK}},
        "benchmarks": {"main": {"tasks": ["third"], "encoders": ["enc"], "heads": ["mean"],
                                "robustness": False}},
    })  # fmt: skip
    for name, sheet in sheets.items():
        _write(config, name, sheet, rng)
    run_stage("folds", config, "third")
    run_stage("mil", config, "third", "enc", "mean")
    run_stage("benchmark", config, "main")
    return config


def test_predictions_and_metrics_of_ordered_classes(evaluated):
    folder = evaluated.paths.mil("third", "enc", "mean")
    table = read_table(folder / "predictions.parquet", "predictions")
    assert list(table)[5:] == ["y", "p_low", "p_middle", "p_high", "grade"]
    assert len(table) == PATIENTS - 1
    assert set(table["y"]) == set(CLASSES)
    np.testing.assert_allclose(table[["p_low", "p_middle", "p_high"]].sum(axis=1), 1, atol=1e-5)
    for name in ("metrics.csv", "external-other.csv"):
        metrics = pd.read_csv(folder / name).query("group == 'all'").set_index("metric")
        assert metrics.loc["auroc_cuts", "value"] > 0.75
        assert metrics.loc["kappa", "value"] > 0.2
        assert {"auroc_cut1", "auroc_cut2", "accuracy"} <= set(metrics.index)


def test_the_table_has_kappa_auroc_over_cuts_and_baselines(evaluated):
    folder = evaluated.paths.benchmark("main")
    text = (folder / "table.md").read_text()
    assert "third: weighted kappa (27 patients, 3 classes)" in text
    assert "third: AUROC over cuts" in text
    assert "Weighted kappa:" in text
    long = pd.read_csv(folder / "table.csv").query("metric == 'kappa' and group == 'all'")
    assert {"enc", "clinical only", "site only"} == set(long["encoder"])
    assert (folder / "figures" / "forest.png").stat().st_size > 0


def test_the_predicted_class_of_new_patients_is_the_median(evaluated):
    models = load_models(evaluated.paths.mil("third", "enc", "mean") / "models")
    target = next(iter(models.values())).target
    probabilities = np.array([[0.4, 0.25, 0.35], [0.1, 0.1, 0.8]])
    rows = pd.DataFrame({"patient_id": ["a", "b"], **target.prediction_columns(probabilities)})
    slides = pd.DataFrame({"slide_id": ["a", "b"], "patient_id": ["a", "b"], "tiles": [3, 3]})
    found = summary(rows, slides.assign(**dict.fromkeys(OUT_OF_RANGE_NOTES, 0.1)), "patient")
    assert found["predicted"].tolist() == ["middle", "high"]
    assert found["grade"].tolist() == pytest.approx([0.95, 1.7])


def test_the_viewer_and_the_checks_accept_the_task(evaluated):
    found = Benchmarks(Records(evaluated)).predictions("third", "enc", "mean")
    assert found["classes"] == ["low", "middle", "high"]
    assert task_summary(evaluated, "third")[0].startswith("classes: low (")
    assert not [one for one in check(evaluated) if "tasks" in one]
