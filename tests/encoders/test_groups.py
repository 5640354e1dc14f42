"""Given encoders read a cohort together, and what was read stays as it is."""

from __future__ import annotations

from pathlib import Path

from stainssl.config import Config, parse
from stainssl.encoders import groups as readings
from stainssl.plan.paths import Paths


def _config(folder: Path, **weights: str) -> Config:
    encoders = {name: {"weights": text} for name, text in weights.items()}
    return parse({
        "results": str(folder),
        "cohorts": {"c": {"sheet": "c.csv"}, "d": {"sheet": "d.csv"}},
        "encoders": {**encoders, "ours": {"method": "random"}},
    })  # fmt: skip


def _begin(config: Config, *names: str) -> None:
    for cohort in config.cohorts:
        for name in names:
            Paths(config.results).embeddings(cohort, "default", name, "all-0000").mkdir(
                parents=True
            )


def test_given_encoders_read_together_and_trained_ones_do_not(tmp_path):
    planned = readings.plan(_config(tmp_path, a="hf-hub:a", b="hf-hub:b"), {})
    assert planned == {c: [{"a": "hf-hub:a", "b": "hf-hub:b"}] for c in "cd"}


def test_one_that_comes_later_reads_alone_once_the_others_began(tmp_path):
    first = readings.plan(_config(tmp_path, a="x", b="y"), {})
    later = _config(tmp_path, a="x", b="y", c="z")
    assert readings.plan(later, first)["c"] == [{"a": "x", "b": "y", "c": "z"}]
    _begin(later, "a", "b")
    assert readings.plan(later, first)["c"] == [{"a": "x", "b": "y"}, {"c": "z"}]


def test_other_weights_leave_the_reading_and_the_rest_stays(tmp_path):
    config = _config(tmp_path, a="other", b="y")
    _begin(config, "a", "b")
    planned = readings.plan(config, {"c": [{"a": "x", "b": "y"}]})["c"]
    assert planned == [{"a": "x", "b": "y"}, {"a": "other"}]
    assert [readings.members(config, "c", one) for one in planned] == [["b"], ["a"]]


def test_an_encoder_that_is_gone_takes_nothing_with_it(tmp_path):
    config = _config(tmp_path, b="y")
    _begin(config, "b")
    assert readings.plan(config, {"c": [{"a": "x", "b": "y"}]})["c"] == [{"a": "x", "b": "y"}]


def test_a_plan_is_read_as_written(tmp_path):
    path = tmp_path / "results" / "readings.json"
    assert readings.read(path) == {}
    readings.write(path, {"c": [{"a": "x"}]})
    assert readings.read(path) == {"c": [{"a": "x"}]}
