"""A demo cohort of small slides, made once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from stainssl.demo import make

SEED, SIDE_PX = 5, 768
PATIENTS = {"a": 4, "b": 3, "c": 3}


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "cohort"
    make(root, SEED, PATIENTS, processes=1, side_px=SIDE_PX)
    return root
