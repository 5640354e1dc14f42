"""Put a finished demo's table into the README: `python -m tools.demo_table results`.

The table is kept in docs/evidence/demo-table.txt as the run wrote it, so that no figure is typed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools.pages import between, marks

REPO = Path(__file__).resolve().parent.parent
README, KEPT = REPO / "README.md", REPO / "docs" / "evidence" / "demo-table.txt"
MARKS = START, END = marks("demo")


def with_section(text: str, table: str) -> str:
    """A page with the table in place of what stood between its marks."""
    return between(text, MARKS, f"\n\n{table}\n")


def main(results: Path) -> None:
    """Keep the first table of a run and its notes, and write them into the README."""
    whole = (results / "benchmarks" / "main" / "table.md").read_text(encoding="utf-8")
    table = whole.partition("\n## ")[0].strip() + "\n"
    KEPT.write_text(table, encoding="utf-8")
    README.write_text(with_section(README.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
