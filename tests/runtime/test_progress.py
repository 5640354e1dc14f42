"""Progress of a run: counts of jobs, and the time left."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainssl.runtime.progress import Progress, Started, last_lines, short_duration


def started(rule: str, at: float) -> Started:
    return Started(rule, rule, None, at)


def test_progress_of_a_run_with_two_rules() -> None:
    run = Progress(0.0)
    run.plan({"tile": 3, "mil": 1})
    assert run.words(0.0) == "0 of 4 jobs done, 4 left"
    assert run.seconds_left(0.0) is None
    run.start(1, started("tile", 0.0))
    run.start(2, started("tile", 0.0))
    assert run.words(5.0) == "0 of 4 jobs done, 2 running, 2 left"
    run.finish(1, 10.0)
    run.finish(2, 10.0)
    # Two at once, ten seconds each: one more of this rule, and one of unknown duration.
    assert run.seconds_left(10.0) == pytest.approx(10.0)
    assert run.words(10.0) == "2 of 4 jobs done, 2 left, about 10 s to go"
    run.start(3, started("tile", 10.0))
    run.fail(3)
    assert run.words(10.0).startswith("2 of 4 jobs done, 1 left, 1 failed")
    run.start(3, started("tile", 10.0))  # retried
    assert run.failed == 0
    run.finish(3, 30.0)
    run.start(4, started("mil", 30.0))
    run.finish(4, 31.0)
    assert run.words(31.0) == "4 of 4 jobs done"
    assert run.seconds_left(31.0) == 0


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 6), min_size=1),
    st.integers(1, 4),
    st.floats(0.5, 50),
)
def test_the_time_left_is_exact_for_jobs_of_equal_duration(
    jobs: dict[str, int], at_once: int, seconds: float
) -> None:
    """Jobs run in rounds of `at_once`; the time left is exact after each full round."""
    queue = [rule for rule, count in jobs.items() for _ in range(count)]
    run, now = Progress(0.0), 0.0
    run.plan(jobs)
    for first in range(0, len(queue), at_once):
        batch = queue[first : first + at_once]
        for number, rule in enumerate(batch, start=first):
            run.start(number, started(rule, now))
        now += seconds
        for number in range(first, first + len(batch)):
            run.finish(number, now)
        assert run.done + run.left == run.total
        if len(batch) == at_once:
            left = len(queue) - first - at_once
            assert run.seconds_left(now) == pytest.approx(left * seconds / at_once)


def test_jobs_without_a_known_start_are_ignored() -> None:
    run = Progress(0.0)
    assert run.finish(7, 1.0) is None
    assert run.fail(8) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (3000, "50 min"), (3600, "1 h 0 min"),
     (7800, "2 h 10 min")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_lines(None, 2) == last_lines(log, 2) == []
    log.write_bytes(b"one\n\ntwo\r\xff three \n\n")
    assert last_lines(log, 2) == ["two", "\ufffd three"]
    log.write_text("x" * 100_000 + "\nlast\n")
    assert last_lines(log, 1) == ["last"]
