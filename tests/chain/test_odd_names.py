"""Folders of people's own: spaces, quotes, dollars and parentheses in a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chain.conftest import Workflow

pytestmark = [pytest.mark.chain]


@pytest.mark.parametrize("name", ["my results", "it's (1) & more", "$HOME-r", "x$(touch made)"])
def test_results_may_have_any_name_that_a_folder_may_have(fresh: Workflow, name: str) -> None:
    fresh.edit("config.yaml", lambda text: f'results: "{name}"\n{text}')
    fresh.run(f"{name}/tasks/her2/folds.csv")
    assert (fresh.folder / name / "tasks" / "her2" / "folds.csv").exists()
    assert not list(fresh.folder.rglob("made"))
    assert {path.name for path in fresh.folder.iterdir()} <= {
        name, "clinic", "config.yaml", ".snakemake"
    }  # fmt: skip


def test_braces_are_refused_when_the_config_is_read(fresh: Workflow) -> None:
    fresh.edit("config.yaml", lambda text: f'results: "res{{x}}"\n{text}')
    assert "results" in fresh.run("-n", fails=True)


def test_a_folder_with_a_space_holds_the_whole_run(fresh: Workflow, tmp_path: Path) -> None:
    there = fresh.copied(tmp_path / "my study (1)")
    there.run("results/tasks/her2/folds.csv")
    assert (there.folder / "results" / "tasks" / "her2" / "folds.csv").exists()
