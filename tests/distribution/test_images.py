"""Container images: what is copied into them is what the package is built of."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def parts_of_the_package() -> set[str]:
    """Files and folders of the clone that an install of the package reads."""
    told = tomllib.loads((REPO / "pyproject.toml").read_text())
    wheel = told["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = told["project"]
    stated = {"pyproject.toml", "requirements.lock", project["readme"], *project["license-files"]}
    return {*stated, *wheel["packages"], *wheel["force-include"]}


def test_docker_is_given_all_of_the_package() -> None:
    lines = (REPO / ".dockerignore").read_text().split()
    assert lines[0] == "**"
    assert {line[1:] for line in lines if line.startswith("!")} == parts_of_the_package()


def test_apptainer_is_given_all_of_the_package() -> None:
    text = (REPO / "stainssl.def").read_text()
    copied = dict(re.findall(r"^    (\S+) /opt/stainssl/(\S+)$", text, re.M))
    assert set(copied) == parts_of_the_package()
    assert all(source == target for source, target in copied.items())


def test_both_images_are_made_in_the_same_way() -> None:
    docker = (REPO / "Dockerfile").read_text()
    apptainer = (REPO / "stainssl.def").read_text()
    for pattern in (r"^FROM python:(\S+)|^From: python:(\S+)", r"uv==([\d.*]+)", r"grep -vE (\S+)"):
        found = [re.findall(pattern, text, re.M) for text in (docker, apptainer)]
        assert ["".join(one) for one in found[0]] == ["".join(one) for one in found[1]], pattern
