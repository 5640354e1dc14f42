"""The Snakefile of a clone uses the package of this clone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chain.conftest import ENV, REPO

pytestmark = pytest.mark.chain


def test_a_clone_uses_its_own_package_if_another_one_is_installed(tmp_path: Path) -> None:
    clone, folder = tmp_path / "clone", tmp_path / "run"
    for name in ("stainssl", "workflow"):
        shutil.copytree(REPO / name, clone / name, ignore=shutil.ignore_patterns("node_modules"))
    shutil.copy(REPO / "Snakefile", clone)
    config = clone / "stainssl" / "config.py"
    text = config.read_text(encoding="utf-8")
    assert "no release is named" in text
    config.write_text(text.replace("no release is named", "this clone knows no release"))
    folder.mkdir()
    (folder / "config.yaml").write_text("cohorts: {c: {release: none, root: .}}\n")
    command = [sys.executable, "-m", "snakemake", "-s", str(clone / "Snakefile"), "-n"]
    done = subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True, check=False)
    assert "this clone knows no release" in done.stdout + done.stderr
