"""How long the page waits for a slide: a reader that hangs costs that slide, not the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from stainssl.errors import SlideError, Status
from stainssl.runtime.limits import LateError
from stainssl.slides.errors import in_time
from stainssl.view.handles import Key

T = TypeVar("T")


class SlideLimits:
    """The time that each slide may take; one that was given up is not tried again.

    Args:
        minutes: of one piece of work on a slide, or of all of it after `start`.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._ends: dict[Key, float] = {}  # by time.monotonic
        self._given_up: dict[Key, str] = {}

    def start(self, key: Key) -> None:
        """From now on, all work on a slide together has the minutes that one piece has."""
        self._ends[key] = time.monotonic() + 60 * self._minutes

    def given_up(self, key: Key) -> str:
        """Why a slide was given up; empty where it was not."""
        return self._given_up.get(key, "")

    def within(self, key: Key, path: Path, work: Callable[[], T]) -> T:
        """`work()` on a slide, as `in_time`.

        Raises:
            SlideError: `unreadable`: it took too long, now or before.
            OSError: the disk or the mount does not answer.
            Whatever `work` raised.
        """
        if detail := self._given_up.get(key):
            raise SlideError(Status.UNREADABLE, detail)
        left = self._ends.get(key, time.monotonic() + 60 * self._minutes) - time.monotonic()
        try:
            return in_time(path, max(left, 0) / 60, work)
        except SlideError as error:
            if isinstance(error.__cause__, LateError):
                self._given_up[key] = error.detail
            raise
