"""Unusual names of folders: spaces, quotes, dollar signs and parentheses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chain.conftest import Workflow

pytestmark = [pytest.mark.chain]


@pytest.mark.parametrize("name", ["my results", "it's (1) & more", "$HOME-r", "x$(touch made)"])
def test_results_may_have_any_folder_name(fresh: Workflow, name: str) -> None:
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


def test_a_run_works_in_a_folder_with_spaces(fresh: Workflow, tmp_path: Path) -> None:
    workflow = fresh.copied(tmp_path / "my study (1)")
    workflow.run("results/tasks/her2/folds.csv")
    assert (workflow.folder / "results" / "tasks" / "her2" / "folds.csv").exists()
