"""Container images get all files that the package is built from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def files_of_the_package() -> set[str]:
    """Files and folders of the clone that an install of the package reads."""
    pyproject = tomllib.loads((REPO / "pyproject.toml").read_text())
    wheel = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = pyproject["project"]
    files = {"pyproject.toml", "requirements.lock", project["readme"], *project["license-files"]}
    return {*files, *wheel["packages"], *wheel["force-include"]}


def test_dockerignore_admits_the_files_of_the_package() -> None:
    lines = (REPO / ".dockerignore").read_text().split()
    assert lines[0] == "**"
    assert {line[1:] for line in lines if line.startswith("!")} == files_of_the_package()


def test_apptainer_copies_the_files_of_the_package() -> None:
    text = (REPO / "stainssl.def").read_text()
    copied = dict(re.findall(r"^    (\S+) /opt/stainssl/(\S+)$", text, re.M))
    assert set(copied) == files_of_the_package()
    assert all(source == target for source, target in copied.items())


def test_docker_and_apptainer_use_the_same_versions() -> None:
    docker = (REPO / "Dockerfile").read_text()
    apptainer = (REPO / "stainssl.def").read_text()
    for pattern in (r"^FROM python:(\S+)|^From: python:(\S+)", r"uv==([\d.*]+)", r"grep -vE (\S+)"):
        found = [re.findall(pattern, text, re.M) for text in (docker, apptainer)]
        assert ["".join(one) for one in found[0]] == ["".join(one) for one in found[1]], pattern
