"""Time limits on calls of libraries that may hang: a thread that is late is abandoned.

A thread inside of a C library cannot be ended. It keeps its memory until the process ends, and the
process must then end without waiting for it: `leaving` does.
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
_left_behind: list[Thread] = []
_numbers = itertools.count()


class LateError(Exception):
    """Work was given up; the message says what it was doing and for how long."""


class _Calls:
    """The calls of libraries that some work is inside of, in any of its threads."""

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
        """What the oldest is doing and its seconds so far; ("", 0) where there is none."""
        calls = list(self._begun.values())
        doing, begun = min(calls, key=lambda call: call[1]) if calls else ("", time.monotonic())
        return doing, time.monotonic() - begun


_calls: ContextVar[_Calls | None] = ContextVar("calls", default=None)


@contextmanager
def library_call(doing: str) -> Iterator[None]:
    """Mark a call of a library, so that `within_limit` sees when it does not come back.

    Args:
        doing: for the message, as "reading level 1 at x 0, y 512".
    """
    calls = _calls.get()
    if calls is None:
        yield
        return
    with calls.during(doing):
        yield


def within_limit(work: Callable[[], T], seconds: float, call_seconds: float = inf) -> T:
    """`work()`, for so long at most.

    Args:
        work: where it is given up, it may go on in its thread: it must not change what others read.
        seconds: of the whole work.
        call_seconds: of one `library_call` in it, made in any thread that `in_order` starts.

    Raises:
        LateError: it took longer.
        Whatever `work` raised.
    """
    calls, result, begun = _Calls(), Future[T](), time.monotonic()
    thread = Thread(target=_work, args=(work, calls, result), daemon=True)
    thread.start()
    while True:
        try:
            return result.result(timeout=min(_CHECK_SECONDS, seconds, call_seconds))
        except TimeoutError:
            if result.done():  # the work's own
                raise
        if late := _lateness(calls, time.monotonic() - begun, seconds, call_seconds):
            _left_behind.append(thread)
            raise LateError(late)


def _work(work: Callable[[], Any], calls: _Calls, result: Future[Any]) -> None:
    _calls.set(calls)
    try:
        result.set_result(work())
    except BaseException as error:  # raised where it is waited for
        result.set_exception(error)


def _lateness(calls: _Calls, spent: float, seconds: float, call_seconds: float) -> str:
    doing, since = calls.oldest()
    if since >= call_seconds:
        return f"{doing}: no answer for {since:.3g} s"
    if spent >= seconds:
        return f"not done after {spent / 60:.3g} min"
    return ""


@contextmanager
def leaving() -> Iterator[None]:
    """The last thing that a process does: work that was left behind is not waited for.

    Python itself waits for the threads of a pool before it ends.
    """
    try:
        yield
    except BaseException as error:
        if not any(thread.is_alive() for thread in _left_behind):
            raise
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
