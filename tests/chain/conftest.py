"""Fixtures that run Snakemake on a small synthetic cohort with a sheet of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}


class Workflow:
    """The Snakefile of this clone, run in a folder of its own."""

    def __init__(self, folder: Path, config: str = "config.yaml") -> None:
        self.folder = folder
        self.config = config

    def command(self, *arguments: str) -> list[str]:
        snakemake = [sys.executable, "-m", "snakemake", "-s", str(REPO / "Snakefile")]
        where = ["--directory", str(self.folder), "--configfile", str(self.folder / self.config)]
        return [*snakemake, *where, "--cores", "2", *arguments]

    def run(self, *arguments: str, fails: bool = False) -> str:
        """Run, and return what was printed."""
        done = subprocess.run(
            self.command(*arguments), env=ENV, capture_output=True, text=True, check=False
        )
        text = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, text[-6000:]
        return text

    def planned(self, *arguments: str) -> dict[str, list[str]]:
        """Jobs that a dry-run plans: rule → outputs."""
        text = self.run("-n", *arguments)
        jobs: dict[str, list[str]] = {}
        for rule, block in re.findall(r"^rule (\w+):\n((?:    .*\n)*)", text, re.M):
            output = re.search(r"^    output: (.*)$", block, re.M)
            jobs.setdefault(rule, []).append(output.group(1) if output else "")
        for rule in ("all", "default"):
            jobs.pop(rule, None)
        return jobs

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        """Rewrite a file of the folder; the text must change."""
        path = self.folder / name
        before = path.read_text()
        after = change(before)
        assert after != before, f"{name} was not changed"
        path.write_text(after)

    def copied(self, folder: Path) -> Workflow:
        """Copy to another folder with the same file times."""
        subprocess.run(["cp", "-a", str(self.folder), str(folder)], check=True)
        return Workflow(folder, self.config)


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, a sheet of 13 small synthetic slides, and their annotations."""
    from stainssl.demo import make

    folder = tmp_path_factory.mktemp("cohort")
    make(folder / "clinic", 5, {"a": 4, "b": 4, "c": 4}, processes=1, side_px=768)
    for file in (HERE / "small").iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def fresh(small_cohort: Path, tmp_path: Path) -> Workflow:
    """The cohort before any job."""
    return Workflow(small_cohort).copied(tmp_path / "run")


@pytest.fixture(scope="session")
def finished(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The cohort after the whole workflow; tests copy it before they change anything."""
    workflow = Workflow(small_cohort).copied(tmp_path_factory.mktemp("finished") / "run")
    workflow.run()
    return workflow
