"""The table of continued training in docs/benchmarks.md equals the recorded results."""

from __future__ import annotations

import json

from benchmarks import continued
from tools.pages import between, marks


def test_the_table_equals_the_recorded_results() -> None:
    found = json.loads(continued.RESULTS.read_text(encoding="utf-8"))
    assert set(found["networks"]) == set(continued.NETWORKS)
    text = continued.PAGE.read_text(encoding="utf-8")
    assert between(text, marks("continued"), continued.section(found)) == text
