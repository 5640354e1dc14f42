"""Rate and remaining time of a job."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 120.0  # the rate is computed from the work done in this time


class Pace:
    """Rate of work over the last two minutes.

    Args:
        total: number of units of work.
        done: units that an interrupted job has already done.
        now: clock, in seconds.
    """

    def __init__(
        self, total: float, done: float = 0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self._now = total, done, now
        self._marks: deque[tuple[float, float]] = deque([(now(), done)])

    def advance(self, units: float) -> None:
        """Add units that have just been done."""
        self.done += units
        now = self._now()
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW_SECONDS:
            self._marks.popleft()

    @property
    def rate(self) -> float:
        """Units per second; 0 before any are done."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start) if end > start else 0.0

    @property
    def left(self) -> str:
        """Remaining time as formatted by `duration`; `?` while the rate is 0."""
        rate = self.rate
        return duration((self.total - self.done) / rate) if rate else "?"


def duration(seconds: float) -> str:
    """Format seconds as `02:03:04`, or `1 d 02:03:04` from one day on."""
    days, rest = divmod(round(max(seconds, 0)), 24 * 3600)
    hours, minutes = divmod(rest // 60, 60)
    clock = f"{hours:02d}:{minutes:02d}:{rest % 60:02d}"
    return f"{days} d {clock}" if days else clock
