"""Benchmark tables, and the curves, cases and UMAPs behind their rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainssl.config import Benchmark
from stainssl.evaluation.predictions import FoldScores, ScoredUnits
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.tables import write_table
from stainssl.view.benchmarks import calibration, fpr_threshold, stain_distances
from stainssl.view.viewer_data import ViewerData
from tests.stages.trained import Trained
from tests.view.conftest import Served, Tab, await_count, inaccessible

TILES = 10  # too few for UMAP, which takes eight seconds: all coordinates are zero


@pytest.fixture(scope="module")
def compared(shown: Trained) -> Iterator[ViewerData]:
    """The cohort with a benchmark table of the tasks' metrics, and a sample of tiles."""
    benchmark = Benchmark(tasks=["patient", "slide"], encoders=["enc"], heads=["abmil"])
    viewer = ViewerData(shown.config.model_copy(update={"benchmarks": {"main": benchmark}}))
    paths = viewer.records.paths
    tables = [
        pd.read_csv(paths.mil(task, "enc", "abmil") / "metrics.csv").assign(task=task)
        for task in ("patient", "slide")
    ]
    table = pd.concat(tables).assign(encoder="enc", run="enc", head="abmil")
    columns_only = table.head(1).assign(encoder="site only", run="site only", head="columns")
    path = paths.benchmark("main") / "table.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat([table, columns_only]).to_csv(path, index=False)
    write_sample(viewer)
    yield viewer
    viewer.close()


def write_sample(viewer: ViewerData) -> None:
    """Write the first tiles of a part as the sample that `robustness` writes."""
    paths, sheet = viewer.records.paths, viewer.records.sheet("clinic")
    part = viewer.records.part("clinic", sheet["slide_id"].iloc[0])
    store = open_embeddings(paths.embeddings("clinic", "enc", part))
    row = sheet.set_index("slide_id").loc[store.slide_id[0]]
    assert store.start[1] >= TILES
    sample = pd.DataFrame(
        {
            "slide_id": store.slide_id[0], "tile": store.tile[:TILES], "label": "1",
            "patient_id": row["patient_id"], "site": row["site"], "task": "patient",
            "vector": list(store.read(slice(0, TILES)).astype(np.float32)),
        }
    )  # fmt: skip
    write_table(paths.robustness("enc") / "sample.parquet", sample, "sample", {})


def test_the_table_marks_rows_with_predictions(compared: ViewerData) -> None:
    assert compared.data("overview")["benchmarks"] == ["main"]
    found = compared.data("benchmark", "main")
    columns = found["columns"]
    assert {len(v) for v in columns.values()} == {len(columns["task"])}
    has = dict(zip(columns["run"], columns["answer"], strict=True))
    assert has == {"enc": True, "site only": False}
    assert found["samples"] == ["enc"]


@pytest.mark.parametrize("task", ["patient", "slide"])
def test_curves_and_cases_of_a_row(compared: ViewerData, task: str) -> None:
    found = compared.data("answer", task, "enc", "abmil")
    metrics = pd.read_csv(compared.records.paths.mil(task, "enc", "abmil") / "metrics.csv")
    auroc = metrics.query("metric == 'auroc' and group == 'all'")["value"].item()
    area = np.trapezoid(found["roc"]["tpr"], found["roc"]["fpr"])
    assert area == pytest.approx(auroc, abs=0.05)  # a grid of 101 points
    cases = found["cases"]
    assert len(cases["truth"]) == found["units"]
    assert cases["p_truth"] == sorted(cases["p_truth"])
    assert all(slides for slides in cases["slides"])
    wrong = [t != p for t, p in zip(cases["truth"], cases["predicted"], strict=True)]
    assert wrong == cases["wrong"]


def test_stain_distances_do_not_depend_on_the_cases_shown(
    compared: ViewerData, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ("slide", "enc", "abmil")
    all_cases = compared.benchmarks.predictions(*row)["cases"]
    monkeypatch.setattr("stainssl.view.benchmarks.MAX_CASES", 2)
    first_cases = compared.benchmarks.predictions(*row)["cases"]
    assert len(all_cases["truth"]) > 2
    assert first_cases["stain_distance"] == all_cases["stain_distance"][:2]


@pytest.mark.parametrize(
    "words",
    [("answer", "nothing", "enc", "abmil"), ("answer", "slide", "..", "abmil"),
     ("answer", "slide", "enc", "linear/.."), ("benchmark", "nothing"), ("plane", "..")],
)  # fmt: skip
def test_unknown_names_raise_key_error(compared: ViewerData, words: tuple[str, ...]) -> None:
    with pytest.raises(KeyError):
        compared.data(*words)


def test_missing_predictions_are_reported(compared: ViewerData) -> None:
    assert "missing" in compared.data("answer", "slide", "enc", "linear")["problem"]


def test_stain_distance_of_a_case() -> None:
    stains = {("c", str(i)): np.array([float(i), 0.0]) for i in range(5)}
    slides = [[["c", "0"]], [["c", "1"], ["c", "3"]], [["c", "4"]], [["c", "unknown"]], []]
    found = stain_distances(slides, stains)
    assert found[:3].tolist() == [1.0, 0.0, 1.0]  # the center is 2, and the median distance 2
    assert np.isnan(found[3:]).all()
    assert np.isnan(stain_distances(slides, {})).all()


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_cases_above_a_threshold_give_its_false_positive_rate(
    units: list[tuple[float, bool]],
) -> None:
    p, y = (np.asarray(values) for values in zip(*units, strict=True))
    both, patient = np.stack([1 - p, p], 1), np.arange(len(p))
    fold = FoldScores(0, patient, both)
    scored = ScoredUnits(y.astype(np.int64), both, patient, ("0", "1"), (fold,))
    found = fpr_threshold(scored)
    if y.all():
        assert np.isnan(found).all()
        return
    for rate in np.unique(
        found
    ):  # each is a threshold: the cases above it have the highest probabilities
        called = found <= rate
        assert called[~y].mean() <= rate + 1e-9
        assert p[called].min() >= p[~called].max(initial=0.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80))
def test_calibration_counts_each_unit_once(units: list[tuple[float, bool]]) -> None:
    p, y = (np.asarray(values) for values in zip(*units, strict=True))
    scored = ScoredUnits(y.astype(np.int64), np.stack([1 - p, p], 1), np.arange(len(p)), ("0", "1"))
    found = calibration(scored)
    assert found["units"].sum() == len(p)
    assert np.average(found["said"], weights=found["units"]) == pytest.approx(p.mean())
    assert np.average(found["came"], weights=found["units"]) == pytest.approx(y.mean())
    assert (np.diff(found["said"]) > -1e-9).all()


def test_page_of_a_benchmark(tab: Tab, page: None, compared: ViewerData) -> None:
    cases = compared.data("answer", "patient", "enc", "abmil")["cases"]
    with Served(compared) as server:
        tab.open(f"{server.address}#benchmark/main")
        rows = tab.page.locator("table.slides tbody tr")
        await_count(rows, 2)
        assert "(" in rows.first.inner_text()
        tab.page.get_by_role("button", name="curves and cases of enc").click()
        tab.page.get_by_text("Cases, worst first").wait_for()
        point = tab.page.locator("figure").nth(1).locator("circle.unseen").first
        point.hover()
        assert "observed" in tab.page.locator("figure .told").nth(1).inner_text()
        point.click()
        tab.page.get_by_text("Cases with predicted probability").wait_for()
        tab.page.get_by_role("button", name="Show all cases").click()
        tab.page.locator("figure").first.locator("circle.active").last.click()
        tab.page.get_by_text("at a false positive rate of 1").wait_for()
        await_count(tab.page.locator(".cases tbody tr"), len(cases["truth"]))
        tab.page.locator("figure").nth(2).locator("circle.active").first.click()
        await_count(tab.page.locator(".cases tbody tr"), 1)
        tab.page.get_by_role("button", name="Show all cases").click()
        tab.page.get_by_label("Encoder").select_option("enc")
        tab.page.locator("circle.dot").first.wait_for()
        await_count(tab.page.locator("circle.dot"), TILES)
        tab.page.locator("circle.dot").last.hover()
        tab.page.locator(".card img").wait_for()
        assert not inaccessible(tab)
        link = tab.page.url
        tab.open(link)
        tab.page.locator("circle.dot").first.wait_for()
        tab.page.locator(".cases a").first.click()
        tab.page.wait_for_selector("main[data-ready=yes] .title")
        tab.leave()
