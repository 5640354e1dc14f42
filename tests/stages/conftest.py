"""Fixtures shared by the tests of the stages."""

from __future__ import annotations

import pytest

from tests.stages.trained import Trained, build


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A cohort with trained tasks; tests only read it and write elsewhere."""
    return build(tmp_path_factory.mktemp("trained"))
