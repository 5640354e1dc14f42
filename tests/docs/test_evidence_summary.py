"""Tables of real tiles are of the records, on every page that shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks import (
    demo_claim,
    evidence_confounded,
    evidence_fan,
    evidence_norms,
    evidence_table,
    evidence_two_sites,
)
from benchmarks import evidence_summary as summary
from tools.pages import between, marks

APPENDIX = evidence_norms.PAGE
RECORDS = evidence_norms.RECORD.parent


class Shown(NamedTuple):
    """A section of a page and what makes it."""

    record: str
    page: Path
    section: Callable[[Any], str]


SHOWN = [
    Shown(f"{name}{kind}", page, section)
    for kind, page in (("", evidence_table.RESULTS), ("-moving-norms", APPENDIX))
    for name, section in (
        ("amibr", evidence_table.section),
        ("confounded", evidence_confounded.section),
        ("fan", evidence_fan.section),
    )
] + [
    Shown("amibr-fine-tuned", evidence_table.RESULTS, evidence_table.section),
    Shown("confounded-longer", evidence_table.RESULTS, evidence_confounded.section),
    Shown("two_sites", evidence_table.RESULTS, evidence_two_sites.section),
    Shown("amibr-all", APPENDIX, evidence_table.section),
    Shown("norms", APPENDIX, evidence_norms.section),
    Shown("demo_claim", APPENDIX, demo_claim.section),
]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: shown.record)
def test_a_section_is_of_its_record(shown: Shown) -> None:
    text = shown.page.read_text(encoding="utf-8")
    made = json.loads((RECORDS / f"{shown.record}.json").read_text(encoding="utf-8"))
    assert between(text, marks(shown.record), f"\n\n{shown.section(made)}\n") == text


@pytest.mark.parametrize("page", summary.PAGES, ids=lambda page: page.name)
def test_the_table_on_the_page_is_that_of_the_records(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    made = f"\n\n{summary.section(summary.load())}\n"
    assert between(text, marks(summary.NAME), made) == text


def test_what_others_published_is_as_the_package_knows_it() -> None:
    text = evidence_table.RESULTS.read_text(encoding="utf-8")
    assert between(text, marks(summary.PUBLISHED), f"\n\n{summary.of_others()}\n") == text


def test_every_row_is_of_a_record() -> None:
    made = summary.load()
    for name, keys in summary.ROWS.items():
        known = [key in made[record] for record, key in zip(made, keys, strict=True) if key]
        assert any(known), name


def test_a_section_is_replaced_and_what_is_around_it_stays() -> None:
    start, end = marks("fan")
    text = between(f"# A\n\n{start}\nold\n{end}\n\n## B\n", (start, end), "\nnew\n")
    assert text == f"# A\n\n{start}\nnew\n{end}\n\n## B\n"
