"""Ordered parallel map in threads, thread counts of libraries, and timing of steps."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from itertools import islice
from typing import TypeVar

from stainssl.runtime.pace import duration

T = TypeVar("T")
R = TypeVar("R")
_threads = 1


def set_job_threads(count: int) -> None:
    """Set the number of threads of this job, which `job_threads` returns; at least 1."""
    global _threads
    _threads = max(1, count)


def job_threads() -> int:
    """Number of threads that this job may use."""
    return _threads


def parallel_map(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Apply `work` to each item in threads and yield the results in the order of the items.

    At most `2 * threads` items are submitted ahead, so that memory is bounded. With one thread,
    `work` runs in the caller's thread when its result is requested.

    Raises:
        Exception: any exception that `work` raises, when its item's turn comes. Work in progress is
            then awaited, and the rest is cancelled.
    """
    if threads <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    rest = iter(items)
    pool = ThreadPoolExecutor(threads)

    def submit(item: T) -> Future[R]:
        return pool.submit(copy_context().run, work, item)

    try:
        waiting.extend(map(submit, islice(rest, 2 * threads)))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(map(submit, islice(rest, 1)))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def library_threads(
    get: Callable[[], int], put: Callable[[int], None], count: int
) -> Iterator[None]:
    """Set the number of threads of a library within the block, for the whole process.

    The library's functions are arguments because this module is also imported where torch or
    OpenCV is not installed.

    Args:
        get: returns the library's number of threads, which is restored after the block.
        put: sets it.
        count: number of threads within the block.
    """
    before = get()
    put(count)
    try:
        yield
    finally:
        put(before)


class TimeSpent:
    """Time spent on each step of a job, summed over threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a step; safe to call from several threads."""
        with self._lock:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Add the time of the block to a step."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - start)

    def include(self, other: TimeSpent) -> None:
        """Add the times of another object, such as that of one slide."""
        for name, seconds in other._seconds.items():
            self.add(name, seconds)

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, adding the time spent waiting for them to a step."""
        rest, end = iter(items), object()
        while True:
            with self.on(name):
                item = next(rest, end)
            if item is end:
                return
            yield item  # type: ignore[misc]  # mypy does not tell `end` from an item

    def line(self, count: int, unit: str) -> str:
        """Summary for the log: `1200 tiles in 00:00:09, 133 tiles/s: reading 60%, …`."""
        seconds = time.monotonic() - self._started
        total = sum(self._seconds.values())
        parts = sorted(self._seconds.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {part / total:.0%}" for name, part in parts if total)
        rate = count / max(seconds, 1e-9)
        said = f"{count} {unit} in {duration(seconds)}, {rate:.3g} {unit}/s"
        return f"{said}: {shares}" if shares else said
