"""Time limits of work that may hang."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from stainssl.runtime.limits import LateError, library_call, within_limit
from stainssl.runtime.parallel import parallel_map


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """Event that a hanging library waits for; set at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def test_results_and_errors_of_the_work_are_passed_on() -> None:
    assert within_limit(lambda: 7, 60) == 7
    with pytest.raises(TimeoutError, match="of the work"):
        within_limit(_raises, 60)


def _raises() -> None:
    raise TimeoutError("of the work")


def test_work_is_abandoned_after_its_time_limit(never: threading.Event) -> None:
    with pytest.raises(LateError, match="not done after"):
        within_limit(never.wait, 0.05)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_library_call_that_hangs_is_named(never: threading.Event, threads: int) -> None:
    def read(number: int) -> int:
        with library_call(f"reading region {number}"):
            if number == 2:
                never.wait()
        return number

    with pytest.raises(LateError, match="reading region 2: no answer"):
        within_limit(lambda: list(parallel_map(read, range(9), threads)), 60, 0.05)


def test_many_short_calls_do_not_reach_the_limit_of_one_call(never: threading.Event) -> None:
    def work() -> int:
        for _ in range(30):
            with library_call("reading"):
                never.wait(0.01)
        return 1

    assert within_limit(work, 60, 0.2) == 1


def test_a_process_ends_although_a_thread_of_a_pool_hangs() -> None:
    code = (
        "import threading, sys\n"
        "from stainssl.runtime.limits import LateError, exit_without_waiting, within_limit\n"
        "from stainssl.runtime.parallel import parallel_map\n"
        "wait = lambda _: threading.Event().wait()\n"
        "with exit_without_waiting():\n"
        "    try:\n"
        "        within_limit(lambda: list(parallel_map(wait, range(4), 2)), 0.1)\n"
        "    except LateError as late:\n"
        "        print(late)\n"
        "    sys.exit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "not done after" in done.stdout
