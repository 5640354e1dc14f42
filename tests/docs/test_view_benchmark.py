"""The table of the page's speed in docs/benchmarks.md is of the record."""

from __future__ import annotations

import json

from benchmarks import view
from tools.pages import between, marks


def test_the_table_on_the_page_is_that_of_the_record() -> None:
    found = json.loads(view.RESULTS.read_text(encoding="utf-8"))
    assert set(found["view"]) == set(view.SHOWN)
    text = view.PAGE.read_text(encoding="utf-8")
    assert between(text, marks("view"), view.section(found)) == text
