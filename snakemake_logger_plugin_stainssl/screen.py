"""What a person sees of a run: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TextIO

from stainssl.runtime.progress import Progress, last_lines, short_duration

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_EVERY_S = 10  # between lines of a run that ends in a file
BAR_WIDTH = 60
MOST_JOBS = 8  # running ones that the bar shows


class Screen(Protocol):
    """Shows how far a run is."""

    def __init__(self, progress: Progress, stream: TextIO) -> None: ...

    def changed(self, finished: str = "") -> None:
        """Show what the run has come to; `finished` names a job that has just ended."""

    def tell(self, text: str) -> None:
        """Show a message, once."""

    def close(self) -> None:
        """Show how the run ended."""


def _end(progress: Progress) -> str:
    now = time.monotonic()
    failed = f", {progress.failed} failed" if progress.failed else ""
    took = short_duration(now - progress.began)
    return f"{progress.done} of {progress.total} jobs done{failed}, in {took}"


class Lines:
    """Plain lines, of which one every ten seconds at most says how far the run is."""

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        self._progress, self._stream = progress, stream
        self._last = progress.began

    def changed(self, finished: str = "") -> None:
        """Say so where a job has ended and the last line is some seconds ago."""
        now = time.monotonic()
        if finished and now - self._last >= LINE_EVERY_S:
            self._last = now
            clock = datetime.now().astimezone().strftime("%H:%M:%S")
            self.tell(f"{clock} {self._progress.words(now)}; last: {finished}")

    def tell(self, text: str) -> None:
        """A line or several."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """The last line."""
        if self._progress.total:
            self.tell(_end(self._progress))


class Bar:
    """A bar of the run, and below it a line for each running job: the last of its log file."""

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._progress = progress
        self._console = Console(file=stream, highlight=False)
        self._live = Live(
            get_renderable=self._drawn, console=self._console, refresh_per_second=2, transient=True
        )
        self._live.start()

    def changed(self, finished: str = "") -> None:
        """Nothing: it is drawn twice a second."""

    def tell(self, text: str) -> None:
        """Above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """The last line instead of the bar."""
        self._live.stop()
        if self._progress.total:
            self.tell(_end(self._progress))

    def _drawn(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if not self._progress.total:
            return Text("Planning the jobs ...")
        bar = Table.grid()
        bar.add_row(ProgressBar(self._progress.total, self._progress.done, width=BAR_WIDTH))
        words = Text(self._progress.words(time.monotonic()), no_wrap=True, overflow="ellipsis")
        return Group(bar, words, *self._jobs())

    def _jobs(self) -> list[RenderableType]:
        from rich.text import Text

        now, jobs = time.monotonic(), list(self._progress.running.values())
        lines: list[RenderableType] = []
        for job in jobs[:MOST_JOBS]:
            said = "".join(last_lines(job.log, 1))
            text = f"  {job.name}, {short_duration(now - job.at)}  {said}"
            lines.append(Text(text, no_wrap=True, overflow="ellipsis"))
        if len(jobs) > MOST_JOBS:
            lines.append(Text(f"  and {len(jobs) - MOST_JOBS} more"))
        return lines
