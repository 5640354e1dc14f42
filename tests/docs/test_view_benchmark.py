"""The table of the viewer's speed in docs/benchmarks.md equals the recorded results."""

from __future__ import annotations

import json

from benchmarks import view
from tools.pages import between, marks


def test_the_table_equals_the_recorded_results() -> None:
    found = json.loads(view.RESULTS.read_text(encoding="utf-8"))
    assert set(found["view"]) == set(view.SHOWN)
    text = view.PAGE.read_text(encoding="utf-8")
    assert between(text, marks("view"), view.section(found)) == text
