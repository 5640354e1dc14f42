"""Continuous integration installs what its jobs need."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from stainssl import extras
from stainssl.config import load
from stainssl.encoders.recipes import RECIPES

REPO = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def installed_by(job: str) -> set[str]:
    """Extras of the package that a job of the CI installs."""
    steps = yaml.safe_load((REPO / ".github/workflows/ci.yml").read_text())["jobs"][job]["steps"]
    lines = "\n".join(step.get("run", "") for step in steps)
    found = re.search(r"install [^\n]*\[([\w,]+)\]", lines)
    assert found is not None, lines
    return set(found.group(1).split(","))


def test_the_job_of_the_wheel_installs_the_extras_of_the_demo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    config = load(REPO / "config.yaml")
    needed = set(re.findall(r"stainssl\[(\w+)\]", "\n".join(extras.problems(config))))
    sources = {encoder.weights or encoder.init for encoder in config.encoders.values()}
    if any(RECIPES[name].package for name in sources & set(RECIPES)):
        needed.add("demo")
    assert {"train", "survival", "demo"} <= needed
    assert {"workflow", *needed} == installed_by("wheel")


def test_the_job_of_oldest_dependencies_installs_all_extras_but_tiatoolbox() -> None:
    assert installed_by("oldest") == set(EXTRAS) - {"all", "tiatoolbox"}
