"""Progress of a run of many jobs: finished and running jobs, and the remaining time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

END_BYTES = 16_384  # read from the end of a log file for its last lines
SECONDS_SHOWN = 90  # shorter durations are shown in seconds


@dataclass(frozen=True)
class Started:
    """A job that has started.

    Attributes:
        rule: name of its Snakemake rule.
        name: what it works on, for display.
        log: its log file, if it has one.
        at: start time, in seconds of a monotonic clock.
    """

    rule: str
    name: str
    log: Path | None
    at: float


class Progress:
    """Counts and times of the jobs of a run.

    Args:
        now: start of the run, in seconds of the same monotonic clock as all later times.
    """

    def __init__(self, now: float) -> None:
        self.began = now
        self.running: dict[int, Started] = {}
        self._failed: set[int] = set()
        self._planned: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def plan(self, jobs: Mapping[str, int]) -> None:
        """Set the number of jobs of each rule."""
        self._planned = Counter(jobs)

    def start(self, job: int, started: Started) -> None:
        """Record that a job has started, possibly for another attempt."""
        self.running[job] = started
        self._failed.discard(job)

    def finish(self, job: int, now: float) -> Started | None:
        """Record that a job has succeeded; returns None if its start was not recorded."""
        started = self.running.pop(job, None)
        if started:
            self._done[started.rule] += 1
            self._seconds[started.rule] += now - started.at
        return started

    def fail(self, job: int) -> Started | None:
        """Record that a job has failed; returns None if its start was not recorded."""
        self._failed.add(job)
        return self.running.pop(job, None)

    @property
    def total(self) -> int:
        """Number of planned jobs."""
        return self._planned.total()

    @property
    def done(self) -> int:
        """Number of jobs that have succeeded."""
        return self._done.total()

    @property
    def failed(self) -> int:
        """Number of jobs that have failed and have not been restarted."""
        return len(self._failed)

    @property
    def left(self) -> int:
        """Number of jobs that have not started."""
        return max(0, self.total - self.done - len(self.running) - self.failed)

    def seconds_left(self, now: float) -> float | None:
        """Estimated remaining time in seconds; None before the first job has succeeded.

        A job is assumed to take the mean time of its rule so far, or of all jobs if none of its
        rule has finished, and as many jobs to run at once as did so far on average.
        """
        if not self.done:
            return None
        spent = sum(now - job.at for job in self.running.values())
        ended = sum(self._seconds.values())
        busy, mean = ended + spent, ended / self.done
        work = sum(
            (count - self._done[rule]) * self._mean(rule, mean)
            for rule, count in self._planned.items()
        )
        at_once = max(busy / max(now - self.began, 1e-9), 1e-9)
        return max(0.0, work - spent) / at_once

    def _mean(self, rule: str, otherwise: float) -> float:
        done = self._done[rule]
        return self._seconds[rule] / done if done else otherwise

    def words(self, now: float) -> str:
        """Summary such as `12 of 56 jobs done, 2 running, 42 left, about 4 min to go`."""
        parts = [f"{self.done} of {self.total} jobs done"]
        if self.running:
            parts.append(f"{len(self.running)} running")
        if self.left:
            parts.append(f"{self.left} left")
        if self.failed:
            parts.append(f"{self.failed} failed")
        seconds = self.seconds_left(now)
        if seconds is not None and (self.left or self.running):
            parts.append(f"about {short_duration(seconds)} to go")
        return ", ".join(parts)


def short_duration(seconds: float) -> str:
    """Format seconds as `40 s`, `4 min` or `2 h 10 min`."""
    if seconds < SECONDS_SHOWN:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def last_lines(path: Path | None, count: int) -> list[str]:
    """The last `count` non-empty lines of a log file; empty if there is no file."""
    if path is None or not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - END_BYTES))
        text = file.read().decode("utf-8", "replace")
    lines = [line.rstrip() for line in text.replace("\r", "\n").split("\n")]
    return [line for line in lines if line][-count:]
