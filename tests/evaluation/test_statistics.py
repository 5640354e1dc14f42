"""The simulation of small cohorts runs, goes on where it was, and its page says what it found."""

import json

import pytest

from benchmarks import statistics as simulation
from benchmarks.statistics import Cell


@pytest.fixture
def small(monkeypatch):
    cells = [Cell(16, 2, 2.0, False, split) for split in ("cv", "site left out")]
    monkeypatch.setattr(simulation, "design", lambda: iter(cells))
    monkeypatch.setattr(simulation, "BLOCK", 2)


def test_an_interrupted_simulation_goes_on_and_is_summed_up(small, tmp_path, monkeypatch):
    simulation.run(tmp_path, 2)
    first = (tmp_path / "blocks.jsonl").read_text()
    simulation.run(tmp_path, 4)
    assert (tmp_path / "blocks.jsonl").read_text().startswith(first)
    monkeypatch.setattr(simulation, "RESULTS", tmp_path / "results.json")
    simulation.collect(tmp_path)
    cells = json.loads((tmp_path / "results.json").read_text())
    assert [cell["cohorts"] for cell in cells] == [4, 4]
    assert [cell["site_is_a_signal"] for cell in cells] == [True, False]
    assert cells[1]["truth"] == 0.5
    assert "| 16 | site left out | 1 | 4 |" in simulation.tables(cells)


def test_the_page_is_as_the_results_say():
    assert simulation.DOCS.read_text() == simulation.write()
