"""Put a finished demo's tables into their pages: `python -m tools.demo_table results`.

The benchmark `main` stands in the README, `kinds` in the tutorial. A table is kept in
docs/evidence/ as the run wrote it, so that no figure is typed. A benchmark that the run did not
make is left.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from stainssl.stores.atomic import write_text
from tools.pages import between, marks

REPO = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Shown:
    """Where a benchmark's table stands.

    Attributes:
        page: below the repository's root.
        name: of the generated part of the page.
        kept: the file in docs/evidence/.
    """

    page: str
    name: str
    kept: str

    def section(self, text: str, table: str) -> str:
        """A page with the table in place of what stood between its marks."""
        return between(text, marks(self.name), f"\n\n{table}\n")


SHOWN = {
    "main": Shown("README.md", "demo", "demo-table.txt"),
    "kinds": Shown("docs/tutorial.md", "demo kinds", "demo-kinds.txt"),
}


def main(results: Path, repo: Path = REPO) -> None:
    """Keep the first table of each benchmark of a run, with its notes, and put it into its page."""
    for benchmark, shown in SHOWN.items():
        made = results / "benchmarks" / benchmark / "table.md"
        if not made.exists():
            continue
        table = made.read_text(encoding="utf-8").partition("\n## ")[0].strip() + "\n"
        write_text(repo / "docs" / "evidence" / shown.kept, table)
        page = repo / shown.page
        write_text(page, shown.section(page.read_text(encoding="utf-8"), table))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
