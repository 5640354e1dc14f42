"""The notebooks run from the first to the last cell."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"


def run(name: str, folder: Path) -> list[str]:
    """Execute a notebook in a folder; returns the kinds of its outputs."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [kind for output in outputs for kind in output.get("data", {})]


@pytest.mark.parametrize("name", ["stain_engine.ipynb", "embeddings.ipynb"])
def test_a_notebook_runs_and_has_figures(name: str, tmp_path: Path) -> None:
    assert "image/png" in run(name, tmp_path)


def test_the_stain_engine_notebook_runs_on_real_tiles(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILES", str(real_data / "camelyon17-centres"))
    assert "image/png" in run("stain_engine.ipynb", tmp_path)


def test_notebooks_are_stored_without_outputs() -> None:
    for path in FOLDER.glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not [cell for cell in cells if cell.get("outputs")], path
