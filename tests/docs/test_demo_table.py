"""The demo's tables on documentation pages equal those written by a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import demo_table
from tools.pages import marks


@pytest.mark.parametrize("benchmark", demo_table.SHOWN)
def test_the_page_shows_the_stored_table(benchmark: str) -> None:
    shown = demo_table.SHOWN[benchmark]
    text = (demo_table.REPO / shown.page).read_text(encoding="utf-8")
    stored = (demo_table.REPO / "docs" / "evidence" / shown.kept).read_text(encoding="utf-8")
    assert shown.section(text, stored) == text
    assert stored.startswith("| encoder |")


def test_only_the_first_table_of_a_run_is_copied(tmp_path: Path) -> None:
    start, end = marks("demo")
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"a\n{start}\nold\n{end}\nb\n")
    folder = tmp_path / "results" / "benchmarks" / "main"
    folder.mkdir(parents=True)
    (folder / "table.md").write_text("| x |\n| --- |\n| 1 |\n\nNote.\n\n## By site\n\n| y |\n")
    demo_table.main(tmp_path / "results", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text
    assert "By site" not in text
    assert text == f"a\n{start}\n\n| x |\n| --- |\n| 1 |\n\nNote.\n\n{end}\nb\n"
    assert not (tmp_path / "docs" / "tutorial.md").exists()  # the run had no such benchmark
