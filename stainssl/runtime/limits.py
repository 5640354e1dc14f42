"""Time limits for library calls that may hang: a thread that exceeds its limit is abandoned.

A thread inside a C library cannot be terminated. It keeps its memory until the process ends, and
the process must end without waiting for it (see `exit_without_waiting`).
"""

from __future__ import annotations

import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")

_CHECK_SECONDS = 1.0
_abandoned: list[Thread] = []
_numbers = itertools.count()


class LateError(Exception):
    """The time limit was exceeded; the message says by what and after how long."""


class _Calls:
    """The library calls that are in progress in any thread of one piece of work."""

    def __init__(self) -> None:
        self._begun: dict[int, tuple[str, float]] = {}

    @contextmanager
    def during(self, doing: str) -> Iterator[None]:
        number = next(_numbers)
        self._begun[number] = doing, time.monotonic()
        try:
            yield
        finally:
            del self._begun[number]

    def oldest(self) -> tuple[str, float]:
        """Description and duration in seconds of the oldest call; ("", 0) if there is none."""
        calls = list(self._begun.values())
        doing, begun = min(calls, key=lambda call: call[1]) if calls else ("", time.monotonic())
        return doing, time.monotonic() - begun


_calls: ContextVar[_Calls | None] = ContextVar("calls", default=None)


@contextmanager
def library_call(doing: str) -> Iterator[None]:
    """Mark the block as a library call, whose duration `within_limit` checks.

    Args:
        doing: description for the error message, such as "reading level 1 at x 0, y 512".
    """
    calls = _calls.get()
    if calls is None:
        yield
        return
    with calls.during(doing):
        yield


def within_limit(work: Callable[[], T], seconds: float, call_seconds: float = inf) -> T:
    """Return `work()`, run in a thread that is abandoned if it takes too long.

    Args:
        work: function without arguments. Once abandoned it may continue in its thread, so it must
            not change data that others read.
        seconds: limit of the whole work.
        call_seconds: limit of each `library_call` in it, including those in threads started by
            `parallel_map`.

    Raises:
        LateError: a limit was exceeded.
        Exception: any exception that `work` raises.
    """
    calls, result, begun = _Calls(), Future[T](), time.monotonic()
    thread = Thread(target=_work, args=(work, calls, result), daemon=True)
    thread.start()
    while True:
        try:
            return result.result(timeout=min(_CHECK_SECONDS, seconds, call_seconds))
        except TimeoutError:
            if result.done():  # raised by `work` itself
                raise
        if late := _lateness(calls, time.monotonic() - begun, seconds, call_seconds):
            _abandoned.append(thread)
            raise LateError(late)


def _work(work: Callable[[], Any], calls: _Calls, result: Future[Any]) -> None:
    _calls.set(calls)
    try:
        result.set_result(work())
    except BaseException as error:  # re-raised by `within_limit`
        result.set_exception(error)


def _lateness(calls: _Calls, spent: float, seconds: float, call_seconds: float) -> str:
    doing, since = calls.oldest()
    if since >= call_seconds:
        return f"{doing}: no answer for {since:.3g} s"
    if spent >= seconds:
        return f"not done after {spent / 60:.3g} min"
    return ""


@contextmanager
def exit_without_waiting() -> Iterator[None]:
    """End the process without waiting for abandoned threads, if the block raises.

    `SystemExit` counts, with its exit code; other exceptions are printed, and the code is 1. To be
    used around the main function: at exit, Python waits for the threads of thread pools.
    """
    try:
        yield
    except BaseException as error:
        if not any(thread.is_alive() for thread in _abandoned):
            raise
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
