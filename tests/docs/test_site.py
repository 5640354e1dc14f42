"""The documentation site builds without a warning and has every page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[2]


def pages_of(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in pages_of(value)]  # type: ignore[union-attr]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "reference/python/index.html").is_file()


def test_every_page_is_in_the_navigation() -> None:
    listed = set(pages_of(yaml.safe_load((REPO / "mkdocs.yml").read_text())["nav"]))
    docs = REPO / "docs"
    assert {str(page.relative_to(docs)) for page in docs.rglob("*.md")} == listed
