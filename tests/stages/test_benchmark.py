"""`folds`, `probe`, `robustness` and `benchmark`, run in this order on a small results folder."""

import json
import logging
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from stainssl.errors import StainsslError
from stainssl.evaluation.evaluate import evaluate
from stainssl.stages import benchmark, robustness, run_stage
from stainssl.stores.tables import read_table, write_table
from tests.evaluation.world import ColorEncoder, MorphologyEncoder, World, build

ENCODERS = {"color": ColorEncoder(), "morphology": MorphologyEncoder()}


def _write_mil_results(world: World) -> None:
    """Write what `mil` writes for the task her2."""
    rng = np.random.default_rng(0)
    for name in ENCODERS:
        sheet = world.sheet
        p = np.clip(0.3 + 0.4 * (sheet["her2"] == "1") + 0.2 * rng.normal(size=len(sheet)), 0, 1)
        rows = sheet[["patient_id", "site"]].assign(slide_id="", repeat=0, fold=0, y=sheet["her2"])
        rows = rows.assign(p_0=1 - p, p_1=p)
        folder = world.paths.mil("her2", name, "mean")
        folder.mkdir(parents=True)
        write_table(folder / "predictions.parquet", rows, "predictions", {})
        evaluate(rows, "patient", 0).to_csv(folder / "metrics.csv", index=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = build(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        names = {str(made.paths.model(name)): encoder for name, encoder in ENCODERS.items()}
        patch.setattr(robustness, "load_source", lambda source, _: names[source.model])
        # UMAP compiles for half a minute; the chain's own test runs it.
        patch.setattr(benchmark, "project", lambda vectors, seed: vectors[:, :2])
        for task in made.config.tasks:
            run_stage("folds", made.config, task)
        for name in ENCODERS:
            run_stage("probe", made.config, "tumor", name)
            run_stage("robustness", made.config, name)
        _write_mil_results(made)
        seen = made.paths.seen("morphology")
        seen.parent.mkdir(parents=True)
        pd.DataFrame({"patient_id": ["c1", "a0"], "cohort": "clinic"}).to_csv(seen, index=False)
        run_stage("benchmark", made.config, "main")
    return made


def _metrics(path, **where):
    rows = pd.read_csv(path / "metrics.csv")
    rows = rows[rows["group"] == "all"].set_index("metric")
    return rows


def test_probe_predicts_only_valid_labelled_tiles_of_test_patients(world):
    rows = read_table(world.paths.probe("tumor", "color") / "predictions.parquet", "predictions")
    assert set(rows["patient_id"]) == {"c0", "c1", "c2", "c3"}
    assert len(rows) == 4 * 16 - 4 - 1  # an unknown label per slide, and one embedding that is NaN
    columns = {"patient_id", "slide_id", "tile", "site", "repeat", "fold", "y", "p_0", "p_1",
               "threshold", "threshold_rule_out"}  # fmt: skip
    assert set(rows.columns) == columns


def test_auroc_at_the_unseen_site_is_higher_for_morphology_than_for_color(world):
    color, morphology = (_metrics(world.paths.probe("tumor", name)) for name in ENCODERS)
    assert morphology.loc["auroc", "value"] > 0.95
    assert morphology.loc["auroc", "value"] > color.loc["auroc", "value"]
    assert "knn_auroc" in color.index


def test_robustness_metrics_are_better_for_morphology_than_for_color(world):
    color, morphology = (_metrics(world.paths.robustness(name))["value"] for name in ENCODERS)
    assert color["site_predictability"] > morphology["site_predictability"]
    assert color["confounded_auroc"] < morphology["confounded_auroc"]
    assert color["stain_cosine"] < morphology["stain_cosine"]


def test_robustness_json_has_every_metric_of_every_encoder(world):
    tree = json.loads((world.paths.benchmark("main") / "robustness.json").read_text())
    assert list(tree) == ["tumor"]
    assert list(tree["tumor"]) == list(ENCODERS)
    for name in ENCODERS:
        rows = pd.read_csv(world.paths.robustness(name) / "metrics.csv")
        found = tree["tumor"][name]
        assert {"croma", "robustness_index", "clean_auroc", "site_drop"} <= set(found)
        assert set(found) == set(rows["metric"])
        assert (
            found["stain_cosine"]["all"]["value"]
            == _metrics(world.paths.robustness(name)).loc["stain_cosine", "value"]
        )


def test_the_confounded_test_stores_the_same_tiles_for_every_encoder(world):
    first, second = (
        read_table(world.paths.robustness(name) / "confounded.parquet", "predictions")
        for name in ENCODERS
    )
    keys = ["task", "patient_id", "slide_id", "tile", "y"]
    pd.testing.assert_frame_equal(first[keys], second[keys])
    assert set(first["patient_id"]) == {"c0", "c1", "c2", "c3"}


def test_the_benchmark_writes_the_same_numbers_in_every_format(world):
    folder = world.paths.benchmark("main")
    shown = {}
    for name in ("table.md", "table.tex", "table.html"):
        text = re.sub(r"<style>.*?</style>", "", (folder / name).read_text(), flags=re.S)
        shown[name] = re.findall(r"\d\.\d\d", text)
    assert shown["table.md"] == shown["table.tex"] == shown["table.html"]
    long = pd.read_csv(folder / "table.csv")
    whole = long[(long["metric"] == "auroc") & (long["group"] == "all")]
    assert len(whole) == 4 + 2  # and the site-only baseline of each task
    for value in whole["value"]:
        assert f"{value:.2f}" in shown["table.md"]


def test_the_site_only_baseline_is_the_last_row_and_is_not_compared(world):
    folder = world.paths.benchmark("main")
    markdown = (folder / "table.md").read_text().split("## By site")[0]
    rows = [line for line in markdown.splitlines() if line.startswith("| ")][1:]
    assert rows[-1].startswith("| site only | columns")
    assert "**" not in rows[-1]
    assert "without any image" in markdown
    compared = pd.read_csv(folder / "comparisons.csv")
    assert "site only" not in set(compared["first"]) | set(compared["second"])
    long = pd.read_csv(folder / "table.csv")
    tumor = long.query("run == 'site only' and task == 'tumor' and metric == 'auroc'")
    # The test site is not in the training data, so all its tiles get the same prediction.
    assert tumor["value"].tolist() == [0.5]


def test_few_shot_curve_and_sample_of_embeddings_are_written(world):
    curve = pd.read_csv(world.paths.probe("tumor", "morphology") / "few_shot.csv")
    assert curve["shots"].min() == 1
    assert curve["auroc"].between(0, 1).all()
    sample = read_table(world.paths.robustness("color") / "sample.parquet", "sample")
    assert {"task", "site", "label", "vector"} <= set(sample)
    assert len(sample["vector"][0]) == 3


def test_the_table_marks_test_patients_that_pretraining_saw(world):
    markdown = (world.paths.benchmark("main") / "table.md").read_text()
    row = next(line for line in markdown.splitlines() if line.startswith("| morphology | linear"))
    assert "†" in row
    assert "† Pretraining saw" in markdown
    long = pd.read_csv(world.paths.benchmark("main") / "table.csv")
    tumor = long[(long["run"] == "morphology") & (long["task"] == "tumor")]
    assert set(tumor["seen"]) == {1}


def test_comparisons_cover_every_column_with_one_correction(world):
    compared = pd.read_csv(world.paths.benchmark("main") / "comparisons.csv")
    assert list(zip(compared["task"], compared["test"], strict=True)) == [
        ("tumor", "auroc"), ("her2", "auroc"), ("tumor", "confounded_auroc"),
    ]  # fmt: skip
    assert (compared["p_holm"] >= compared["p"]).all()
    assert (compared["p"] >= 2 / 2**4).all()  # the smallest p for so few patients


@pytest.mark.parametrize("name", ["roc", "calibration", "forest", "robustness", "few_shot", "umap"])
def test_figures_are_png_files(world, name):
    data = (world.paths.figures("main") / f"{name}.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


def test_missing_predictions_are_named(world):
    folder = world.paths.mil("her2", "color", "mean")
    shutil.move(folder, folder.with_name("away"))
    try:
        with pytest.raises(StainsslError, match=r"her2/color/mean/predictions\.parquet"):
            run_stage("benchmark", world.config, "main")
    finally:
        shutil.move(folder.with_name("away"), folder)


def test_a_benchmark_of_slide_tasks_needs_a_head(world):
    main = world.config.benchmarks["main"]
    bare = main.model_copy(update={"tasks": ["her2"], "heads": []})
    config = world.config.model_copy(update={"benchmarks": {"main": bare}})
    with pytest.raises(StainsslError, match="heads"):
        run_stage("benchmark", config, "main")


def test_the_probe_refuses_another_level_and_an_unknown_label(world):
    with pytest.raises(StainsslError, match="level patient"):
        run_stage("probe", world.config, "her2", "color")
    task = world.config.tasks["tumor"].model_copy(update={"label": "necrosis"})
    config = world.config.model_copy(update={"tasks": {"tumor": task}})
    with pytest.raises(StainsslError, match=r"tasks\.tumor: .*no label 'necrosis'; it has tumor"):
        run_stage("probe", config, "tumor", "color")


def test_robustness_requires_a_benchmark_with_robustness_enabled(world):
    with pytest.raises(StainsslError, match="robustness: true"):
        run_stage("robustness", world.config.model_copy(update={"benchmarks": {}}), "color")


def _without_tile_task(world, folder):
    """A copy of the results with a benchmark without a tile task, and without tile labels."""
    shutil.copytree(world.config.results, folder / "results")
    main = world.config.benchmarks["main"].model_copy(update={"tasks": ["her2"]})
    config = world.config.model_copy(
        update={"results": folder / "results", "benchmarks": {"patients": main}}
    )
    shutil.rmtree(folder / "results" / "robustness")
    for path in (folder / "results").rglob("labels/*"):
        path.unlink()
    return config, config.paths


def test_without_a_tile_task_only_label_free_metrics_are_computed(world, tmp_path, monkeypatch):
    config, paths = _without_tile_task(world, tmp_path)
    names = {str(paths.model(name)): encoder for name, encoder in ENCODERS.items()}
    monkeypatch.setattr(robustness, "load_source", lambda source, _: names[source.model])
    for name in ENCODERS:
        run_stage("robustness", config, name)
    run_stage("benchmark", config, "patients")
    found = {name: _metrics(paths.robustness(name))["value"] for name in ENCODERS}
    assert found["morphology"]["stain_retrieval_top1"] > found["color"]["stain_retrieval_top1"]
    assert found["color"]["site_predictability"] > found["color"]["site_chance"]
    assert not {"confounded_auroc", "croma", "site_drop"} & set(found["color"].index)
    table = pd.read_csv(paths.benchmark("patients") / "table.csv")
    rows = table[(table["metric"] == "stain_retrieval_top1") & (table["run"] == "color")]
    assert rows["task"].tolist() == ["her2"]
    assert "her2: stain retrieval, top 1" in (paths.benchmark("patients") / "table.md").read_text(
        encoding="utf-8"
    )
    sample = read_table(paths.robustness("color") / "sample.parquet", "sample")
    assert set(sample["label"]) == {""}


def test_without_two_stain_targets_robustness_has_no_metrics_and_the_benchmark_runs(
    world, tmp_path, monkeypatch, caplog
):
    def fail(*_args):
        raise StainsslError("found 1 site")

    caplog.set_level(logging.INFO)
    config, paths = _without_tile_task(world, tmp_path)
    monkeypatch.setattr(robustness, "load_source", lambda *_: ENCODERS["color"])
    monkeypatch.setattr(robustness, "two_targets", fail)
    for name in ENCODERS:
        run_stage("robustness", config, name)
    assert "her2: no robustness metrics: found 1 site" in caplog.text
    run_stage("benchmark", config, "patients")
    assert json.loads((paths.benchmark("patients") / "robustness.json").read_text()) == {}
    drawn = {file.name for file in paths.figures("patients").iterdir()}
    assert drawn == {"roc.png", "calibration.png", "forest.png"}
    assert "robustness: No robustness figure" in caplog.text
