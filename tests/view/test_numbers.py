"""Plots of regression and survival tasks on the page agree with the predictions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stainssl.config import parse
from stainssl.evaluation.follow_up import follow_up_word
from stainssl.stores.tables import write_table
from stainssl.view.viewer_data import ViewerData
from tests.view.conftest import Served, Tab, await_count, inaccessible

PATIENTS = 40
COMMON = {"level": "patient", "cohorts": ["c"], "split": {"kind": "cv", "folds": 2}}
TASKS = {
    "ki67": {**COMMON, "kind": "regression", "label": "ki67"},
    "os": {**COMMON, "kind": "survival", "time": "months", "event": "died"},
}


def _sheet(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """A sheet, and the log hazard of each of its patients."""
    hazard = rng.normal(size=PATIENTS)
    time, end = rng.exponential(20 * np.exp(-hazard)), rng.uniform(5, 60, PATIENTS)
    names = [f"p{i:02d}" for i in range(PATIENTS)]
    sheet = pd.DataFrame({
        "slide_id": [f"s-{name}" for name in names], "patient_id": names, "path": "gone.svs",
        "site": "a", "ki67": np.round(30 + 10 * hazard, 1),
        "months": np.round(np.minimum(time, end), 1), "died": (time <= end).astype(int),
    })  # fmt: skip
    return sheet, hazard


def _predictions(sheet: pd.DataFrame, **columns: object) -> pd.DataFrame:
    ids = {"patient_id": sheet["patient_id"], "slide_id": "", "site": "a", "repeat": 0}
    return pd.DataFrame({**ids, "fold": np.arange(len(sheet)) % 2, **columns})


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewerData]:
    """A benchmark of a regression and a survival task, with predictions close to the truth."""
    folder, rng = tmp_path_factory.mktemp("numbers"), np.random.default_rng(0)
    sheet, hazard = _sheet(rng)
    sheet.to_csv(folder / "slides.csv", index=False)
    benchmark = {"tasks": list(TASKS), "encoders": ["enc"], "heads": ["mean"], "robustness": False}
    config = parse({
        "results": str(folder / "results"),
        "cohorts": {"c": {"sheet": str(folder / "slides.csv"), "root": str(folder)}},
        "encoders": {"enc": {"method": "random"}}, "tasks": TASKS,
        "heads": {"mean": {"kind": "mean"}}, "benchmarks": {"main": benchmark},
    })  # fmt: skip
    viewer = ViewerData(config)
    follow_ups = [
        follow_up_word(t, e == 1) for t, e in sheet[["months", "died"]].itertuples(index=False)
    ]
    noisy = hazard + 0.5 * rng.normal(size=PATIENTS)
    predictions = {
        "ki67": _predictions(sheet, y=sheet["ki67"], value=30 + 10 * noisy),
        "os": _predictions(
            sheet, y=follow_ups, risk=np.exp(noisy), s_20=np.exp(-np.exp(noisy)), threshold=1.0
        ),
    }
    rows = []
    for (task, table), metric in zip(predictions.items(), ("spearman", "c_index"), strict=True):
        path = viewer.records.paths.mil(task, "enc", "mean") / "predictions.parquet"
        write_table(path, table, "predictions", {})
        rows.append((task, "enc", "enc", "mean", metric, "all", 0.8, 0.7, 0.9, PATIENTS, PATIENTS))
    few = ("site=St_Ann", -0.25, -1.0, 0.5, PATIENTS, PATIENTS)
    rows.append(("ki67", "enc", "enc", "mean", "spearman", *few))
    columns = [
        "task",
        "encoder",
        "run",
        "head",
        "metric",
        "group",
        "value",
        "low",
        "high",
        "patients",
        "units",
    ]
    path = viewer.records.paths.benchmark("main") / "table.csv"
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    yield viewer
    viewer.close()


def _open(tab: Tab, address: str, task: str) -> None:
    tab.open(f"{address}#benchmark/main?task={task}")
    tab.page.get_by_role("button", name="curves and cases of enc").click()
    tab.page.locator("figure").first.wait_for()


def test_points_of_the_scatter_plot_are_the_cases(
    tab: Tab, page: None, predicted: ViewerData
) -> None:
    cases = predicted.data("answer", "ki67", "enc", "mean")["cases"]
    with Served(predicted) as server:
        _open(tab, server.address, "ki67")
        points = tab.page.locator("figure circle.point")
        await_count(points, PATIENTS)
        place = [float(points.nth(i).get_attribute("cx") or "nan") for i in range(PATIENTS)]
        height = [float(points.nth(i).get_attribute("cy") or "nan") for i in range(PATIENTS)]
        assert np.corrcoef(place, cases["truth"])[0, 1] > 0.9999
        assert np.corrcoef(height, cases["predicted"])[0, 1] < -0.9999
        labels = tab.page.locator("figure svg text").all_text_contents()
        assert "true" in labels
        assert "predicted" in labels
        tab.page.locator("figure circle.active").first.click()
        await_count(tab.page.locator(".cases tbody tr"), 1)
        assert cases["patient_id"][0] in tab.page.locator(".cases tbody").inner_text()
        assert not inaccessible(tab)
        tab.leave()


def test_metrics_sites_and_intervals_are_written_as_in_the_table(
    tab: Tab, page: None, predicted: ViewerData
) -> None:
    with Served(predicted) as server:
        tab.open(f"{server.address}#benchmark/main?task=ki67&group=site%3DSt_Ann")
        controls = tab.page.locator(".controls").first.inner_text()
        assert "Spearman" in controls
        assert "site St_Ann" in controls
        row = tab.page.locator("table.slides tbody tr").inner_text()
        assert "-0.25 (-1.00 to 0.50)" in row
        tab.leave()


def test_survival_curves_decrease_and_numbers_at_risk_are_shown(
    tab: Tab, page: None, predicted: ViewerData
) -> None:
    found = predicted.data("answer", "os", "enc", "mean")
    groups = found["survival"]
    with Served(predicted) as server:
        _open(tab, server.address, "os")
        await_count(tab.page.locator("figure path.line"), 2)
        for path in tab.page.locator("figure path.line").all():
            points = re.findall(r"[ML]([\d.]+) ([\d.]+)", path.get_attribute("d") or "")
            x, y = np.array(points, float).T
            assert (np.diff(x) >= 0).all()
            assert (np.diff(y) >= 0).all()  # y increases downwards on the screen
        text = tab.page.locator("figure").inner_text()
        for name, group in groups.items():
            assert f"{name} risk: {group['events']} events of {group['units']}" in text
        at, *rows = [
            row.locator("th, td").all_inner_texts()
            for row in tab.page.locator("figure table tr").all()
        ]
        cases = found["cases"]
        followed = {name: [] for name in groups}
        for name, follow_up in zip(cases["predicted"], cases["truth"], strict=True):
            followed[name].append(float(follow_up.removesuffix("+")))
        assert len(at) > 4
        for name, *counts in rows:
            expected = [sum(t >= float(time) for t in followed[name]) for time in at[1:]]
            assert [int(count) for count in counts] == expected
        assert found["log_rank"].startswith("log-rank p = ")
        assert found["log_rank"] in text
        tab.page.locator("figure circle.active").last.click()
        tab.page.get_by_text("Cases of high risk").wait_for()
        await_count(tab.page.locator(".cases tbody tr"), groups["high"]["units"])
        assert not inaccessible(tab)
        tab.leave()


def test_screenshots_of_both_plots(
    tab: Tab, page: None, predicted: ViewerData, tmp_path: Path
) -> None:
    with Served(predicted) as server:
        for task in TASKS:
            _open(tab, server.address, task)
            tab.page.screenshot(path=tmp_path / f"{task}.png", full_page=True)
        tab.leave()
