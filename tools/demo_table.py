"""Write the tables of a finished run into the docs: `python -m tools.demo_table results`.

The demo's benchmark `main` is in the README and `kinds` in the tutorial; `breakhis`, of
tests/chain/real/patches.yaml, is in docs/real-data.md. The tables are also stored in
docs/evidence/ as the run wrote them, so that no number is typed by hand. A benchmark that the run
does not have is left unchanged.
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
    """Place of a benchmark's table in the docs.

    Attributes:
        page: path relative to the repository.
        name: name of the generated part of the page.
        kept: name of the file in docs/evidence/.
    """

    page: str
    name: str
    kept: str

    def section(self, text: str, table: str) -> str:
        """Return the text of a page with its generated part replaced by the table."""
        return between(text, marks(self.name), f"\n\n{table}\n")


SHOWN = {
    "main": Shown("README.md", "demo", "demo-table.txt"),
    "kinds": Shown("docs/tutorial.md", "demo kinds", "demo-kinds.txt"),
    "breakhis": Shown("docs/real-data.md", "breakhis", "breakhis-table.txt"),
}


def main(results: Path, repo: Path = REPO) -> None:
    """Store the first table of each benchmark of a run, with its notes, and write the pages."""
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
