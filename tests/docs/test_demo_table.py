"""The README's table of the demo is the one that a run wrote."""

from __future__ import annotations

from pathlib import Path

from tools import demo_table


def test_the_readme_shows_the_kept_table() -> None:
    text, kept = (p.read_text(encoding="utf-8") for p in (demo_table.README, demo_table.KEPT))
    assert demo_table.with_section(text, kept) == text
    assert "stain-invariant" in kept
    assert "imagenet" in kept


def test_of_a_run_the_first_table_is_taken(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo_table, "KEPT", tmp_path / "kept.md")
    monkeypatch.setattr(demo_table, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(f"a\n{demo_table.START}\nold\n{demo_table.END}\nb\n")
    folder = tmp_path / "results" / "benchmarks" / "main"
    folder.mkdir(parents=True)
    (folder / "table.md").write_text("| x |\n| --- |\n| 1 |\n\nNote.\n\n## By site\n\n| y |\n")
    demo_table.main(tmp_path / "results")
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text
    assert "By site" not in text
    assert (
        text == f"a\n{demo_table.START}\n\n| x |\n| --- |\n| 1 |\n\nNote.\n\n{demo_table.END}\nb\n"
    )
