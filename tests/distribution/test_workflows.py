"""What continuous integration installs is enough for what it then runs."""

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


def test_the_wheels_job_can_plan_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    config = load(REPO / "config.yaml")
    asked = set(re.findall(r"stainssl\[(\w+)\]", "\n".join(extras.problems(config))))
    given = {encoder.weights or encoder.init for encoder in config.encoders.values()}
    if any(RECIPES[name].package for name in given & set(RECIPES)):
        asked.add("demo")
    assert {"train", "survival", "demo"} <= asked
    assert {"workflow", *asked} == installed_by("wheel")


def test_the_oldest_dependencies_are_those_of_all_but_tiatoolbox() -> None:
    assert installed_by("oldest") == set(EXTRAS) - {"all", "tiatoolbox"}
