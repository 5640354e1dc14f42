"""Results of a whole run, and jobs that run again after a change."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from tests.chain.conftest import Workflow

pytestmark = [pytest.mark.chain, pytest.mark.xdist_group("finished")]
TRAINING = {"target", "pretrain"}


@pytest.fixture
def workflow(finished: Workflow, tmp_path: Path) -> Workflow:
    return finished.copied(tmp_path / "run")


def test_the_workflow_ends_in_a_table_of_three_encoders(finished: Workflow) -> None:
    folder = finished.folder / "results" / "benchmarks" / "main"
    table = pd.read_csv(folder / "table.csv")
    assert {"stain-invariant", "simclr", "random"} <= set(table["encoder"])
    figures = ("figures/roc.png", "figures/forest.png", "figures/robustness.png")
    for name in ("table.md", "table.tex", "table.html", *figures):
        assert (folder / name).stat().st_size > 200
    assert not list((finished.folder / "results").rglob(".tmp-*"))


def test_unusable_slides_have_a_status_with_the_reason(finished: Workflow) -> None:
    slides = pd.read_csv(finished.folder / "results/cohorts/clinic/default/slides.csv")
    bad = slides[slides["status"] != "ok"]
    assert sorted(bad["status"]) == ["empty", "no-mpp", "truncated"]
    assert bad["detail"].str.len().min() > 20


def test_a_second_run_has_nothing_to_do(finished: Workflow) -> None:
    assert finished.planned() == {}


def test_min_tissue_reruns_tiling_and_the_jobs_that_depend_on_it(workflow: Workflow) -> None:
    workflow.edit("config.yaml", lambda text: text.replace("min_tissue: 0.5", "min_tissue: 0.6"))
    planned = set(workflow.planned())
    assert {"tile", "label", "pixels", "embed", "probe", "mil", "benchmark"} | TRAINING <= planned
    assert "folds" not in planned


def _append_slide(workflow: Workflow) -> None:
    sheet = workflow.folder / "clinic" / "slides.csv"
    row = pd.read_csv(sheet, dtype=str).query("split == 'test'").iloc[-1:]
    copied = workflow.folder / "clinic" / "slides" / "new.svs"
    copied.write_bytes((workflow.folder / "clinic" / row["path"].iloc[0]).read_bytes() + b" ")
    row = row.assign(slide_id="new", patient_id="new", path="slides/new.svs")
    row.to_csv(sheet, mode="a", header=False, index=False)


def test_an_appended_test_slide_retrains_nothing(workflow: Workflow) -> None:
    _append_slide(workflow)
    planned = workflow.planned()
    assert not TRAINING & set(planned)
    for rule in ("tile", "label", "pixels", "embed"):
        assert all("test-0000" in output for output in planned[rule]), planned[rule]
    assert {"folds", "probe", "mil", "benchmark", "gate"} <= set(planned)


def test_a_corrected_label_reruns_no_job_on_pixels_or_encoders(workflow: Workflow) -> None:
    sheet = workflow.folder / "clinic" / "slides.csv"
    frame = pd.read_csv(sheet, dtype=str)
    patient = frame["patient_id"].iloc[-1]
    flipped = frame["her2"].map({"0": "1", "1": "0"})
    frame["her2"] = frame["her2"].where(frame["patient_id"] != patient, flipped)
    frame.to_csv(sheet, index=False)
    assert set(workflow.planned()) == {"folds", "mil", "benchmark"}


def test_the_table_has_all_labels_of_a_task_with_several_labels(workflow: Workflow) -> None:
    workflow.edit(
        "config.yaml", lambda text: text.replace("label: her2", "labels: [her2, response]")
    )
    workflow.run()
    table = pd.read_csv(workflow.folder / "results/benchmarks/main/table.csv")
    assert {"her2.her2", "her2.response"} <= set(table["task"])
    assert workflow.planned() == {}


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".")
    }


def test_embeddings_are_the_same_if_pixels_are_not_kept(workflow: Workflow) -> None:
    tiling = workflow.folder / "results/cohorts/clinic/default"
    vectors = tiling / "embeddings/random"
    before = _contents(vectors)
    stores = [f"{store.relative_to(workflow.folder)}" for store in vectors.glob("*-0000*")]
    assert stores
    shutil.rmtree(tiling / "pixels")
    shutil.rmtree(vectors)
    workflow.edit("config.yaml", lambda t: t.replace("slides: {", "slides: {keep_pixels: false, "))
    workflow.run(*stores)
    after = _contents(vectors)
    assert after == {name: before[name] for name in after}
    assert not list(tiling.glob("pixels/*"))


def test_a_frozen_encoder_is_never_retrained(workflow: Workflow) -> None:
    workflow.edit(
        "config.yaml", lambda text: text.replace("epochs: 2", "epochs: 3\n    frozen: true")
    )
    assert not TRAINING & set(workflow.planned())
    workflow.edit("config.yaml", lambda text: text.replace("min_tissue: 0.5", "min_tissue: 0.6"))
    planned = workflow.planned()
    assert "embed" in planned
    assert "pretrain" not in planned or all("random" in output for output in planned["pretrain"])


def test_a_missing_frozen_encoder_is_an_error_before_any_job(fresh: Workflow) -> None:
    fresh.edit("config.yaml", lambda text: text.replace("epochs: 2", "epochs: 2\n    frozen: true"))
    text = fresh.run("-n", fails=True)
    assert "encoders.simclr: frozen, and" in text
    assert "nothing was run" in text


def test_the_report_has_the_figures_of_each_benchmark(workflow: Workflow) -> None:
    workflow.edit(
        "config.yaml",
        lambda text: (
            f"{text}  slides: {{tasks: [her2], encoders: [random], heads: [mean],"
            " robustness: false}\n"
        ),
    )
    workflow.run()
    workflow.run("--report", "report.zip")
    with zipfile.ZipFile(workflow.folder / "report.zip") as report:
        names = [name for name in report.namelist() if name.endswith(".png")]
        text = report.read(next(n for n in report.namelist() if n.endswith("report.html"))).decode()
    folders = {
        b: workflow.folder / "results/benchmarks" / b / "figures" for b in ("main", "slides")
    }
    figures = {b: {file.stem for file in folder.glob("*.png")} for b, folder in folders.items()}
    assert figures["main"] == {"roc", "calibration", "forest", "robustness", "few_shot", "umap"}
    assert figures["slides"] == {"roc", "calibration", "forest"}
    shown = sorted(Path(name).stem for name in names if Path(name).stem in figures["main"])
    assert shown == sorted([*figures["main"], *figures["slides"]])
    assert "ROC curves of benchmark slides on out-of-fold predictions" in text


def test_missing_outputs_are_planned_in_the_run_that_appends_a_slide(workflow: Workflow) -> None:
    """The gate runs again for the slide; missing outputs behind it are planned nevertheless."""
    clinic = "cohorts/clinic/default/embeddings/random/train-0000.zarr"
    shutil.rmtree(workflow.folder / "results" / clinic)
    _append_slide(workflow)
    planned = workflow.planned()
    assert "gate" in planned
    assert any("train-0000" in output for output in planned["embed"])
