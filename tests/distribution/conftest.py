"""The wheel, built once for all tests that use it, which run in one worker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distribution.bare import Bare

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive of this clone."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(REPO)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """An environment with the wheel, without extras."""
    return Bare(tmp_path_factory.mktemp("bare") / "env", wheel)
