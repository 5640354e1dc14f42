"""The simulation of small cohorts: resuming, summary, and the page of its results."""

import json

import pandas as pd
import pytest

from benchmarks import small_cohorts as simulation
from benchmarks.small_cohorts import Cell


@pytest.fixture
def small(monkeypatch):
    cells = [Cell(16, 2, 2.0, False, split) for split in ("cv", "site left out")]
    monkeypatch.setattr(simulation, "design", lambda: iter(cells))
    monkeypatch.setattr(simulation, "BLOCK", 2)


def test_an_interrupted_simulation_is_resumed_and_summarized(small, tmp_path, monkeypatch):
    cells = list(simulation.design())
    simulation.run(tmp_path, 2, cells)
    first = (tmp_path / "blocks.jsonl").read_text()
    simulation.run(tmp_path, 4, cells)
    assert (tmp_path / "blocks.jsonl").read_text().startswith(first)
    monkeypatch.setattr(simulation, "RESULTS", tmp_path / "results.json")
    simulation.collect(tmp_path)
    cells = json.loads((tmp_path / "results.json").read_text())
    assert [cell["cohorts"] for cell in cells] == [4, 4]
    assert [cell["site_is_a_signal"] for cell in cells] == [True, False]
    assert cells[1]["truth"] == 0.5
    assert "| 16 | site left out | 1 | 4 |" in simulation.tables(cells)
    kept = [{**cells[0], "cohorts": 6, "auroc": 0.7}, cells[1]]
    (tmp_path / "results.json").write_text(json.dumps(kept))
    simulation.collect(tmp_path)  # a cell with more cohorts is kept
    assert json.loads((tmp_path / "results.json").read_text())[0]["auroc"] == 0.7


def test_a_cell_is_reported_only_if_it_misses_an_aim_beyond_the_simulation_error():
    cell = {
        "patients": 16, "sites": 2, "effect": 2.0, "even": True, "split": "cv", "cohorts": 100,
        "auroc": 0.5, "auroc_error": 0.01, "missed": 0.05, "p_below_5_percent": 0.05,
    }  # fmt: skip
    near = {"auroc": 0.535, "missed": 0.14, "p_below_5_percent": 0.0}
    for change in near.items():
        assert simulation.outside(pd.DataFrame([{**cell, **dict([change])}])) == []
    (line,) = simulation.outside(pd.DataFrame([{**cell, "auroc": 0.45, "missed": 0.2}]))
    assert line.endswith("mean AUROC 0.450 ± 0.010, intervals exclude 0.5 in 20.0 %")


def test_the_page_is_up_to_date_with_the_results():
    assert simulation.DOCS.read_text() == simulation.write()
