"""The tables of the benchmarks of threads, streaming and allocation are those of their records."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from benchmarks import allocation, streaming, threads
from tools.pages import between, marks


@pytest.mark.parametrize(
    "benchmark",
    [threads, streaming, allocation],
    ids=["threads", "streaming", "allocation"],
)
def test_the_table_on_the_page_is_that_of_the_record(benchmark: ModuleType) -> None:
    found = json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))
    page = threads.PAGE.read_text(encoding="utf-8")
    made = f"\n\n{benchmark.section(found)}\n"
    assert between(page, marks(benchmark.RESULTS.stem), made) == page
