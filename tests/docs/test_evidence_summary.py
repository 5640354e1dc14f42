"""Tables of results on real tiles equal their records, on every page with them."""

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
    evidence_few_sites,
    evidence_norms,
    evidence_table,
)
from benchmarks import evidence_summary as summary
from tools.pages import between, marks

APPENDIX = evidence_norms.PAGE
RECORDS = evidence_norms.RECORD.parent


class Shown(NamedTuple):
    """A section of a page, its record, and the function that writes it."""

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
    Shown("amibr-128-px", evidence_table.RESULTS, evidence_table.section),
    Shown("few_sites-128-px", evidence_table.RESULTS, evidence_few_sites.section),
    Shown("confounded-128-px", evidence_table.RESULTS, evidence_confounded.section),
    Shown("confounded-detail", APPENDIX, evidence_confounded.section),
    Shown("few_sites", APPENDIX, evidence_few_sites.section),
    Shown("amibr-all", APPENDIX, evidence_table.section),
    Shown("amibr-variants", APPENDIX, evidence_table.section),
    Shown("confounded-variants", APPENDIX, evidence_confounded.section),
    Shown("amibr-from-random", APPENDIX, evidence_table.section),
    Shown("norms", APPENDIX, evidence_norms.section),
    Shown("demo_claim", APPENDIX, demo_claim.section),
]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: shown.record)
def test_a_section_equals_its_record(shown: Shown) -> None:
    text = shown.page.read_text(encoding="utf-8")
    content = json.loads((RECORDS / f"{shown.record}.json").read_text(encoding="utf-8"))
    assert between(text, marks(shown.record), f"\n\n{shown.section(content)}\n") == text


@pytest.mark.parametrize("page", summary.PAGES, ids=lambda page: page.name)
def test_the_summary_table_equals_the_records(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    expected = f"\n\n{summary.section(summary.load())}\n"
    assert between(text, marks(summary.NAME), expected) == text


def test_published_results_equal_those_in_the_package() -> None:
    text = evidence_table.RESULTS.read_text(encoding="utf-8")
    assert between(text, marks(summary.PUBLISHED), f"\n\n{summary.of_others()}\n") == text


def test_every_row_has_a_record() -> None:
    records = summary.load()
    for name, keys in summary.ROWS.items():
        known = [key in records[record] for record, key in zip(records, keys, strict=True) if key]
        assert any(known), name


def test_only_the_section_is_replaced() -> None:
    start, end = marks("fan")
    text = between(f"# A\n\n{start}\nold\n{end}\n\n## B\n", (start, end), "\nnew\n")
    assert text == f"# A\n\n{start}\nnew\n{end}\n\n## B\n"
