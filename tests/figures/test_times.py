"""The page of computing times, from Snakemake's records of jobs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stainssl.figures.times import times_by_rule, times_page, times_text
from stainssl.runtime.gpus import GPU_MESSAGE


def _record(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["s\th:m:s\tmax_rss\tcpu_time", *rows]) + "\n")


def test_jobs_are_summed_by_rule(tmp_path: Path) -> None:
    _record(tmp_path / "times/tile/c/default/train-0000.tsv", "10.0\t0:00:10\t100.5\t20.0")
    second = tmp_path / "times/tile/c/default/train-0001.tsv"
    _record(second, "9\t-\t1\t1", "30.0\t0:00:30\t300\t40.0")
    _record(tmp_path / "times/pretrain/own.tsv", "93600\t1 day, 2:00:00\t-\t-")
    _record(tmp_path / "times/demo.tsv", "1.5\t0:00:01\tNA\tNA")
    found = times_by_rule(tmp_path / "times", tmp_path / "logs").set_index("rule")
    assert found.index.tolist() == ["pretrain", "tile", "demo"]
    assert found["jobs"].to_dict() == {"pretrain": 1, "tile": 2, "demo": 1}
    assert found.loc["tile", "hours"] == pytest.approx(40 / 3600)
    assert found.loc["tile", "core_hours"] == pytest.approx(60 / 3600)
    assert found.loc["tile", ["longest_s", "peak_mb"]].tolist() == [30.0, 300.0]


def test_the_page_has_every_rule_and_the_days_of_long_jobs(tmp_path: Path) -> None:
    _record(tmp_path / "times/pretrain/own.tsv", "93600\t1 day, 2:00:00\t-\t-")
    _record(tmp_path / "times/a<b/x.tsv", "1\t-\t2\t3")
    text = times_page(times_by_rule(tmp_path / "times", tmp_path / "logs"))
    assert "1 d 02:00:00" in text
    assert "a&lt;b" in text
    assert "width:100.0%" in text


def test_the_text_has_no_exponents(tmp_path: Path) -> None:
    _record(tmp_path / "times/pretrain/own.tsv", "93600\t1 day, 2:00:00\t1623.5\t80000")
    _record(tmp_path / "times/demo.tsv", "1.5\t0:00:01\tNA\tNA")
    text = times_text(times_by_rule(tmp_path / "times", tmp_path / "logs"))
    assert {"93600", "1624", "–"} <= set(text.split())
    assert "e+" not in text


def test_a_run_without_records_has_no_jobs(tmp_path: Path) -> None:
    assert times_by_rule(tmp_path / "times", tmp_path / "logs").empty
    assert "0 jobs" in times_page(times_by_rule(tmp_path / "times", tmp_path / "logs"))


def _log(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_gpu_hours_are_computed_from_the_logs_of_jobs(tmp_path: Path) -> None:
    _record(tmp_path / "times/embed/c/a.tsv", "1800\t0:30:00\t100\t20.0")
    _record(tmp_path / "times/embed/c/b.tsv", "1800\t0:30:00\t100\t20.0")
    _record(tmp_path / "times/pretrain/own.tsv", "7200\t2:00:00\t100\t20.0")
    _record(tmp_path / "times/tile/a.tsv", "60\t0:01:00\t100\t20.0")
    _log(tmp_path / "logs/embed/c/a.log", f"12:00:00 embed c a: {GPU_MESSAGE % 1}\n12:30:00 done\n")
    _log(tmp_path / "logs/embed/c/b.log", "12:00:00 embed c b: no such line\n")
    _log(tmp_path / "logs/pretrain/own.log", f"{GPU_MESSAGE % 4}\n")
    found = times_by_rule(tmp_path / "times", tmp_path / "logs")
    hours = found.set_index("rule")["gpu_hours"].to_dict()
    assert hours == pytest.approx({"embed": 0.5, "pretrain": 8.0, "tile": 0.0})
    assert "8.5 GPU hours" in times_page(found)


def test_gpus_are_not_mentioned_if_no_job_had_one(tmp_path: Path) -> None:
    _record(tmp_path / "times/embed/c/a.tsv", "1800\t0:30:00\t100\t20.0")
    found = times_by_rule(tmp_path / "times", tmp_path / "logs")
    assert "GPU" not in times_page(found)
    assert "GPU" not in times_page(times_by_rule(tmp_path / "none", tmp_path / "logs"))


def test_logs_and_records_of_jobs_have_the_same_relative_paths() -> None:
    rules = Path(__file__).parents[2] / "workflow" / "rules"
    for file in rules.glob("*.smk"):
        paths = re.findall(r"(LOGS|TIMES) / (f?\".*)\\.(?:log|tsv)\"", file.read_text())
        by_kind = [[path for kind, path in paths if kind == k] for k in ("LOGS", "TIMES")]
        assert by_kind[0] == by_kind[1], file.name
