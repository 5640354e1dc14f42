"""What is generated into a page that is otherwise written by hand."""

from __future__ import annotations

from pathlib import Path

from stainssl.stores.atomic import write_text


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a generated part of a page."""
    return f"<!-- {name}: generated -->", f"<!-- {name}: end -->"


def between(page: str, marks: tuple[str, str], text: str) -> str:
    """A page with a text in place of what stood between its two marks."""
    start, end = marks
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}{text}{end}{after}"


def fill(page: Path, marks: tuple[str, str], text: str) -> None:
    """Write a text into a page, in place of what stood between its two marks."""
    write_text(page, between(page.read_text(encoding="utf-8"), marks, text))
