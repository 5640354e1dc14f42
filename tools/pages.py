"""Generated parts of pages that are otherwise written by hand."""

from __future__ import annotations

from pathlib import Path

from stainssl.stores.atomic import write_text


def marks(name: str) -> tuple[str, str]:
    """Return the comments before and after a generated part of a page."""
    return f"<!-- {name}: generated -->", f"<!-- {name}: end -->"


def between(page: str, marks: tuple[str, str], text: str) -> str:
    """Return the text of a page with the part between two marks replaced."""
    start, end = marks
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}{text}{end}{after}"


def fill(page: Path, marks: tuple[str, str], text: str) -> None:
    """Replace the part of a page between two marks, on disk."""
    write_text(page, between(page.read_text(encoding="utf-8"), marks, text))
