"""The page of times sums what Snakemake recorded of each job."""

from __future__ import annotations

from pathlib import Path

import pytest

from stainssl.figures.times import times_by_rule, times_page


def _record(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["s\th:m:s\tmax_rss\tcpu_time", *rows]) + "\n")


def test_jobs_are_summed_by_rule(tmp_path: Path) -> None:
    _record(tmp_path / "tile/c/default/train-0000.tsv", "10.0\t0:00:10\t100.5\t20.0")
    _record(tmp_path / "tile/c/default/train-0001.tsv", "9\t-\t1\t1", "30.0\t0:00:30\t300\t40.0")
    _record(tmp_path / "pretrain/own.tsv", "93600\t1 day, 2:00:00\t-\t-")
    _record(tmp_path / "demo.tsv", "1.5\t0:00:01\tNA\tNA")
    found = times_by_rule(tmp_path).set_index("rule")
    assert found.index.tolist() == ["pretrain", "tile", "demo"]
    assert found["jobs"].to_dict() == {"pretrain": 1, "tile": 2, "demo": 1}
    assert found.loc["tile", "hours"] == pytest.approx(40 / 3600)
    assert found.loc["tile", "core_hours"] == pytest.approx(60 / 3600)
    assert found.loc["tile", ["longest_s", "peak_mb"]].tolist() == [30.0, 300.0]


def test_the_page_names_every_rule_and_does_not_wrap(tmp_path: Path) -> None:
    _record(tmp_path / "pretrain/own.tsv", "93600\t1 day, 2:00:00\t-\t-")
    _record(tmp_path / "a<b/x.tsv", "1\t-\t2\t3")
    text = times_page(times_by_rule(tmp_path))
    assert "1 d 02:00:00" in text
    assert "a&lt;b" in text
    assert "width:100.0%" in text


def test_a_run_without_records(tmp_path: Path) -> None:
    assert times_by_rule(tmp_path).empty
    assert "0 jobs" in times_page(times_by_rule(tmp_path))
