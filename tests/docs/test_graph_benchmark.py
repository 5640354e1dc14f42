"""The table of dry-runs in docs/benchmarks.md equals the recorded results."""

import json

from benchmarks import graph
from tools.pages import between, marks


def test_the_table_equals_the_recorded_results() -> None:
    found = json.loads(graph.RESULTS.read_text(encoding="utf-8"))
    text = graph.PAGE.read_text(encoding="utf-8")
    assert between(text, marks("graph"), graph.section(found)) == text
