"""How fast a job is, and how long it has to go."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 120.0  # what was done in it is what the rate is taken from


class Pace:
    """Rate of the last two minutes, of work that is counted as it is done.

    Args:
        total: units of the whole work.
        done: units that were done before this job, by one that was killed.
        now: a clock, in seconds.
    """

    def __init__(
        self, total: float, done: float = 0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self._now = total, done, now
        self._marks: deque[tuple[float, float]] = deque([(now(), done)])

    def advance(self, units: float) -> None:
        """Count work that was just done."""
        self.done += units
        now = self._now()
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW_SECONDS:
            self._marks.popleft()

    @property
    def rate(self) -> float:
        """Units a second; 0 before any was done."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start) if end > start else 0.0

    @property
    def left(self) -> str:
        """The time left, as `duration` writes it; `?` where nothing was done yet."""
        rate = self.rate
        return duration((self.total - self.done) / rate) if rate else "?"


def duration(seconds: float) -> str:
    """A length of time as `02:03:04`, past a day as `1 d 02:03:04`."""
    days, rest = divmod(round(max(seconds, 0)), 24 * 3600)
    hours, minutes = divmod(rest // 60, 60)
    clock = f"{hours:02d}:{minutes:02d}:{rest % 60:02d}"
    return f"{days} d {clock}" if days else clock
