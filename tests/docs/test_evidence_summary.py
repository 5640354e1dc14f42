"""The table of real tiles is of the records, on both pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import evidence_summary as summary
from tools.pages import between


@pytest.mark.parametrize("page", summary.PAGES, ids=lambda page: page.name)
def test_the_table_on_the_page_is_that_of_the_records(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    made = f"\n\n{summary.section(summary.load())}\n"
    assert between(text, summary.MARKS, made) == text


def test_every_row_is_of_a_record() -> None:
    made = summary.load()
    for name, keys in summary.ROWS.items():
        known = [key in made[record] for record, key in zip(made, keys, strict=True) if key]
        assert any(known), name
