"""The rate of recent steps, and the time left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainssl.runtime.pace import WINDOW_SECONDS, Pace, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.floats(0.01, 1000), st.integers(2, 500), st.integers(0, 400))
def test_the_time_left_is_exact_for_steady_work(seconds: float, steps: int, before: int) -> None:
    clock = Clock()
    pace = Pace(1000, before, clock)
    for _ in range(steps):
        clock.now += seconds
        pace.advance(1)
    assert pace.rate == pytest.approx(1 / seconds, rel=1e-6)
    left = (1000 - before - steps) * seconds
    # Either side of a rounding limit.
    assert pace.left in (duration(left - 1e-6), duration(left + 1e-6))


def test_a_slow_start_is_forgotten() -> None:
    clock = Clock()
    pace = Pace(800, now=clock)
    clock.now += 600  # a first step that compiles
    pace.advance(1)
    for _ in range(2 * int(WINDOW_SECONDS)):
        clock.now += 1
        pace.advance(1)
    assert pace.rate == pytest.approx(1)


def test_pauses_between_steps_count() -> None:
    # The end of an epoch takes time, too, which is part of the time left.
    clock = Clock()
    pace = Pace(100, now=clock)
    for _ in range(10):
        clock.now += 1
        pace.advance(1)
    clock.now += 10
    pace.advance(1)
    assert pace.rate == pytest.approx(11 / 20)


def test_the_time_left_is_unknown_before_the_first_step() -> None:
    assert Pace(10).left == "?"


def test_durations_are_rounded_and_count_days() -> None:
    assert duration(0.4) == "00:00:00"
    assert duration(59.6) == "00:01:00"
    assert duration(24 * 3600 + 2 * 3600 + 184) == "1 d 02:03:04"
    assert duration(100 * 24 * 3600 - 1) == "99 d 23:59:59"
    assert duration(-3) == "00:00:00"
