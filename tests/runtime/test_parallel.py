"""Parallel map: order of results, number of concurrent calls, and errors."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stainssl.runtime.parallel import TimeSpent, parallel_map


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3)), st.integers(1, 5))
def test_results_are_in_order_whatever_the_duration_of_calls(
    items: list[int], threads: int
) -> None:
    def work(item: int) -> int:
        time.sleep(item / 2000)
        return item * 10

    assert list(parallel_map(work, items, threads)) == [item * 10 for item in items]


def test_there_are_as_many_calls_at_a_time_as_threads_and_few_results_ahead() -> None:
    running, most, started = 0, 0, 0
    lock = threading.Lock()

    def work(item: int) -> int:
        nonlocal running, most, started
        with lock:
            running, started = running + 1, started + 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return item

    results = parallel_map(work, range(100), 3)
    assert next(results) == 0
    time.sleep(0.1)
    assert started <= 2 * 3 + 1  # the rest is not started before results are taken
    assert list(results) == list(range(1, 100))
    assert most == 3


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised_at_its_position_and_stops_further_calls(threads: int) -> None:
    seen = []

    def work(item: int) -> int:
        seen.append(item)
        if item == 5:
            raise ValueError("five")
        return item

    results = parallel_map(work, range(1000), threads)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert len(seen) <= 5 + 1 + 2 * threads


def test_closing_the_results_ends_the_threads() -> None:
    before = threading.active_count()
    results = parallel_map(lambda item: item, range(1000), 4)
    next(results)
    results.close()
    assert threading.active_count() == before


def test_the_line_has_the_share_of_each_kind_of_work() -> None:
    spent = TimeSpent()
    spent.add("reading", 3.0)
    spent.add("network", 1.0)
    assert spent.line(10, "tiles").endswith(" tiles/s: reading 75%, network 25%")
    assert spent.line(10, "tiles").startswith("10 tiles in 00:00:00, ")
    assert ":" not in TimeSpent().line(0, "tiles").split(",")[1]
