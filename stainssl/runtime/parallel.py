"""Work side by side in threads, its results in order, and where its time went."""

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
_threads = 1  # of this job


def use_threads(count: int) -> None:
    """Say how many threads this job may use."""
    global _threads
    _threads = max(1, count)


def job_threads() -> int:
    """How many threads this job may use."""
    return _threads


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`work(item)` of each item, in the order of the items, up to `threads` of them at a time.

    At most twice as many results wait for one before them, so that memory is bounded. With one
    thread nothing is begun ahead.

    Raises:
        Whatever `work` raised, at its item's place; what was begun is waited for, the rest is not.
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
    """Have a library use `count` threads within the block, in every thread of the process.

    Its functions to read and to set the number are passed in: this module is imported where
    neither torch nor OpenCV is installed.
    """
    before = get()
    put(count)
    try:
        yield
    finally:
        put(before)


class TimeSpent:
    """Seconds by what they went into, of all threads together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count seconds."""
        with self._lock:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Count the time of the block."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - start)

    def include(self, other: TimeSpent) -> None:
        """Count what another one counted, of a part of the work."""
        for name, seconds in other._seconds.items():
            self.add(name, seconds)

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, counting the time that they are waited for."""
        rest, end = iter(items), object()
        while True:
            with self.on(name):
                item = next(rest, end)
            if item is end:
                return
            yield item  # type: ignore[misc]  # mypy does not tell `end` from an item

    def line(self, count: int, unit: str) -> str:
        """One line for the log: `1200 tiles in 00:00:09, 130 tiles/s: reading 60%, …`."""
        seconds = time.monotonic() - self._started
        total = sum(self._seconds.values())
        parts = sorted(self._seconds.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {part / total:.0%}" for name, part in parts if total)
        rate = count / max(seconds, 1e-9)
        said = f"{count} {unit} in {duration(seconds)}, {rate:.3g} {unit}/s"
        return f"{said}: {shares}" if shares else said
