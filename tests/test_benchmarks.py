"""Every script in `benchmarks/` can be imported."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

LOCAL = {"benchmarks", "stainssl", "tools"}
SCRIPTS = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_can_be_imported(script: Path) -> None:
    try:
        importlib.import_module(f"benchmarks.{script.stem}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in LOCAL:
            raise
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_no_benchmark_has_the_name_of_a_standard_module(script: Path) -> None:
    """Its folder comes first on the import path if it is run as a file."""
    assert script.stem not in sys.stdlib_module_names
