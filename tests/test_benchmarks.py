"""Every script of `benchmarks/` still finds what it imports."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

OURS = {"benchmarks", "stainssl", "tools"}
SCRIPTS = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_can_be_imported(script: Path) -> None:
    try:
        importlib.import_module(f"benchmarks.{script.stem}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in OURS:
            raise
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_hides_no_module_of_the_standard_library(script: Path) -> None:
    """Its folder is the first place of imports where it is started as a file."""
    assert script.stem not in sys.stdlib_module_names
