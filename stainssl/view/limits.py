"""Time limits per slide, so that a reader that hangs affects only its own slide."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from stainssl.errors import SlideError, Status
from stainssl.runtime.limits import LateError
from stainssl.slides.errors import run_with_limits
from stainssl.view.handles import Key

T = TypeVar("T")


class SlideLimits:
    """Time limit of each slide; a slide that exceeded it is not tried again.

    Args:
        minutes: limit of each call of `within`; after `start`, of all calls for a slide together.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._ends: dict[Key, float] = {}  # by time.monotonic
        self._given_up: dict[Key, str] = {}

    def start(self, key: Key) -> None:
        """Start the clock of a slide: from now on the limit is for all calls together."""
        self._ends[key] = time.monotonic() + 60 * self._minutes

    def given_up(self, key: Key) -> str:
        """Return the reason why a slide was given up, empty if it was not."""
        return self._given_up.get(key, "")

    def within(self, key: Key, path: Path, work: Callable[[], T]) -> T:
        """Run `work()` on a slide within its time limit, as `run_with_limits` does.

        Raises:
            SlideError: with status `unreadable`, if it takes or once took too long.
            OSError: the disk or the mount does not respond.

        Any exception of `work` is passed on.
        """
        if detail := self._given_up.get(key):
            raise SlideError(Status.UNREADABLE, detail)
        left = self._ends.get(key, time.monotonic() + 60 * self._minutes) - time.monotonic()
        try:
            return run_with_limits(path, max(left, 0) / 60, work)
        except SlideError as error:
            if isinstance(error.__cause__, LateError):
                self._given_up[key] = error.detail
            raise
