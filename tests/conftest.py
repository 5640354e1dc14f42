"""Fixtures used by all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# One thread per worker: with one per core, workers mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# No deadlines: tests must pass on a busy machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("untimed"), max_examples=10)
QUICK = bool(os.environ.get("STAINSSL_QUICK"))  # set by `make test-quick`
settings.load_profile("quick" if QUICK else "untimed")
# Left out of a quick run: runs of Snakemake, training, rendered slides, other processes,
# simulations.
SLOW = (
    "chain", "datasets", "demo", "distribution", "mil", "pretrain", "runtime", "slurm", "stages",
    "docs", "view", "evaluation/test_regression.py", "evaluation/test_probe.py",
    "evaluation/test_robustness.py", "evaluation/test_survival_metrics.py", "stain/test_augment.py",
    "slides/test_isolated.py", "slides/test_backends.py", "slides/test_tissue.py",
    "encoders/test_initial.py", "test_cli.py", "test_extras.py",
)  # fmt: skip
collect_ignore = list(SLOW) if QUICK else []
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real slides and tiles; tests that use it are skipped without it."""
    named = os.environ.get("STAINSSL_REAL_DATA")
    folder = Path(named) if named else REPO.parent / "shared" / "real-data"
    if not folder.is_dir():
        pytest.skip(f"no real data: STAINSSL_REAL_DATA is unset and {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """A headless Chromium; tests that use it are skipped without one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of a module in one worker, so that its fixtures are made once."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(REPO))))
