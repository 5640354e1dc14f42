"""A miniature of every release, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets.miniature import MINIATURES, Pictures, draw


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def releases(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Release → its folder; tests that change one copy it."""
    folder = tmp_path_factory.mktemp("releases")
    return {name: make(folder / name, pictures) for name, make in MINIATURES.items()}
