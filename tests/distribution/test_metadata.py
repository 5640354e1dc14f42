"""Metadata in other files agrees with the package."""

import json
import re
import tomllib
from pathlib import Path

import yaml

import stainssl

REPO = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


def test_version_license_and_description_agree() -> None:
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    codemeta = json.loads((REPO / "codemeta.json").read_text())
    assert {citation["version"], codemeta["version"]} == {stainssl.__version__}
    assert citation["license"] == PROJECT["license"]
    assert codemeta["license"].endswith(PROJECT["license"])
    assert codemeta["description"] == PROJECT["description"]


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## \[?([\d.]+)", (REPO / "CHANGELOG.md").read_text(), re.M)
    assert first is not None
    assert first.group(1) == stainssl.__version__
