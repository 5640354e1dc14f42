"""Groups of pretrained encoders that embed a cohort together."""

from __future__ import annotations

import os
from pathlib import Path

from stainssl.config import Config, parse
from stainssl.plan import groups
from stainssl.plan.run import FixedRun, latest, restore, short_digest
from stainssl.plan.workflow import Plan


def _config(folder: Path, **weights: str) -> Config:
    encoders = {name: {"weights": text} for name, text in weights.items()}
    return parse({
        "results": str(folder),
        "cohorts": {"c": {"sheet": "c.csv"}, "d": {"sheet": "d.csv"}},
        "encoders": {**encoders, "ours": {"method": "random"}},
    })  # fmt: skip


def _start_embedding(config: Config, *names: str) -> None:
    for cohort in config.cohorts:
        for name in names:
            config.paths.embeddings(cohort, name, "all-0000").mkdir(parents=True)


def test_pretrained_encoders_are_grouped_and_others_are_not(tmp_path):
    planned = groups.plan(_config(tmp_path, a="hf-hub:a", b="hf-hub:b"), {})
    assert planned == {c: [{"a": "hf-hub:a", "b": "hf-hub:b"}] for c in "cd"}


def test_a_later_encoder_is_in_a_new_group_once_the_others_have_started(tmp_path):
    first = groups.plan(_config(tmp_path, a="x", b="y"), {})
    later = _config(tmp_path, a="x", b="y", c="z")
    assert groups.plan(later, first)["c"] == [{"a": "x", "b": "y", "c": "z"}]
    _start_embedding(later, "a", "b")
    assert groups.plan(later, first)["c"] == [{"a": "x", "b": "y"}, {"c": "z"}]


def test_an_encoder_with_changed_weights_leaves_its_group(tmp_path):
    config = _config(tmp_path, a="other", b="y")
    _start_embedding(config, "a", "b")
    planned = groups.plan(config, {"c": [{"a": "x", "b": "y"}]})["c"]
    assert planned == [{"a": "x", "b": "y"}, {"a": "other"}]
    assert [groups.members(config, "c", one) for one in planned] == [["b"], ["a"]]


def test_a_removed_encoder_does_not_change_its_group(tmp_path):
    config = _config(tmp_path, b="y")
    _start_embedding(config, "b")
    assert groups.plan(config, {"c": [{"a": "x", "b": "y"}]})["c"] == [{"a": "x", "b": "y"}]


def test_groups_are_read_as_a_run_wrote_them(tmp_path):
    path = tmp_path / "results" / "g.json"
    assert groups.read(path) == {}
    run = FixedRun("a: 1\n", {"c": [{"a": "x"}]}, str(path))
    run.write(tmp_path / "results" / "configs" / "0.yaml")
    assert groups.read(path) == {"c": [{"a": "x"}]}


def test_a_job_restores_the_config_of_its_own_run(tmp_path, monkeypatch):
    monkeypatch.setattr("os.environ", dict(os.environ))
    first, second = (FixedRun(f"a: {i}\n", {}, str(tmp_path / "g.json")) for i in (1, 2))
    first.to_environment("results/")
    file = tmp_path / "results" / "configs" / f"{short_digest(first.config)}.yaml"
    second.to_environment("results/")
    assert latest("results/") == second
    restore(file)
    assert file.read_text() == first.config
    assert not list(tmp_path.rglob("g.json"))


def _plan(folder: Path, benchmarks: dict[str, list[str]]) -> Plan:
    """A plan of two cohorts with the encoders a, b and ours; `benchmarks`: cohort → encoders."""
    (folder / "c.csv").write_text("slide_id,patient_id,path,her2\ns,p,s.svs,0\nt,q,t.svs,1\n")
    (folder / "d.csv").write_text("slide_id,patient_id,path,her2\nu,r,s.svs,0\nv,o,t.svs,1\n")
    cohort = {"root": str(folder), "patient_ids": "local"}
    made = {
        "results": str(folder / "results"),
        "slides": {"on_missing": "quarantine"},
        "cohorts": {c: {**cohort, "sheet": str(folder / f"{c}.csv")} for c in "cd"},
        "encoders": {"a": {"weights": "resnet18"}, "b": {"weights": "resnet34"},
                     "ours": {"method": "random", "backbone": "resnet18"}},
        "tasks": {c: {"level": "slide", "label": "her2", "cohorts": [c],
                      "split": {"kind": "cv", "folds": 2}} for c in "cd"},
        "heads": {"mean": {"kind": "mean"}},
        "benchmarks": {c: {"tasks": [c], "encoders": names, "heads": ["mean"], "robustness": False}
                       for c, names in benchmarks.items()},
    }  # fmt: skip
    return Plan(made, is_main=False)


def test_encoders_that_every_cohort_embeds_together_are_not_embedded_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("os.environ", dict(os.environ))
    folders = [tmp_path / name for name in ("together", "apart")]
    for folder in folders:
        folder.mkdir()
    together = _plan(folders[0], {"c": ["a", "b", "ours"], "d": ["a", "b"]})
    assert together.embedded_alone() == "ours"
    apart = _plan(folders[1], {"c": ["a", "b"], "d": ["a", "ours"]})
    assert apart.embedded_alone() == "a|b|ours"
