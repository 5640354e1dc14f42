"""The table of encoders in docs/benchmarks.md equals the recorded results."""

from __future__ import annotations

import json

from benchmarks import encoders
from tools.pages import between, marks


def test_the_table_equals_the_recorded_results() -> None:
    found = json.loads(encoders.RESULTS.read_text(encoding="utf-8"))
    assert set(found["encoders"]) == set(encoders.CARDS)
    text = encoders.PAGE.read_text(encoding="utf-8")
    assert between(text, marks("encoders"), encoders.section(found)) == text
