"""The tables in docs/howto/robustness.md equal the recorded results."""

from __future__ import annotations

import json

from benchmarks import tile_robustness
from tools.pages import between, marks


def test_the_tables_equal_the_recorded_results() -> None:
    record = json.loads(tile_robustness.RESULTS.read_text(encoding="utf-8"))
    text = tile_robustness.PAGE.read_text(encoding="utf-8")
    for name in tile_robustness.CALLS:
        section = tile_robustness.section(record, name)
        assert section in text
        assert between(text, marks(name), section) == text
