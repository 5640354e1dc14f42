"""The table of dry-runs in docs/benchmarks.md is of the record."""

import json

from benchmarks import graph
from tools.pages import between, marks


def test_the_table_on_the_page_is_that_of_the_record() -> None:
    found = json.loads(graph.RESULTS.read_text(encoding="utf-8"))
    text = graph.PAGE.read_text(encoding="utf-8")
    assert between(text, marks("graph"), graph.section(found)) == text
