"""Snakemake's output as one bar of the whole run: `snakemake --logger stainssl`.

Jobs then write to their log files alone; the last line of each file is what the bar shows of its
job, and the last lines of a job that failed are printed. With `--verbose` and in a dry-run it
prints as Snakemake does.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase

from snakemake_logger_plugin_stainssl.screen import Bar, Lines, Screen
from stainssl.launch import LOGS_ONLY
from stainssl.runtime.progress import Progress, Started, last_lines

LINES_OF_A_FAILURE = 20


class LogHandler(LogHandlerBase):
    """Takes Snakemake's events; the name is Snakemake's."""

    def __post_init__(self) -> None:
        settings = self.common_settings
        stream = sys.stdout if settings.stdout else sys.stderr
        self._closed = False
        self._usual: logging.Handler | None = None
        self._act: dict[str, Callable[[Any], None]] = {
            "run_info": self._planned,
            "job_info": self._started,
            "job_finished": self._finished,
            "job_error": self._failed,
            "group_error": self._group_failed,
        }
        if settings.verbose or settings.dryrun:
            self._usual = _usual(settings)
            return
        os.environ[LOGS_ONLY] = "1"
        self._progress = Progress(time.monotonic())
        kind: type[Screen] = Bar if stream.isatty() else Lines
        self._screen = kind(self._progress, stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Show one event."""
        if self._usual is not None:
            if self._usual.filter(record):
                self._usual.emit(record)
            return
        event = getattr(record, "event", None)
        if event in self._act:
            self._act[event](record)
        elif record.levelno >= logging.WARNING or (event is None and not self._progress.total):
            self._screen.tell(str(record.msg or ""))

    def close(self) -> None:
        """End the bar with how the run went; Snakemake and then `logging` call it."""
        if self._usual is None and not self._closed:
            self._closed = True
            self._screen.close()
        super().close()

    def _planned(self, record: Any) -> None:
        self._progress.plan({rule: n for rule, n in record.stats.items() if rule != "total"})
        self._screen.changed()

    def _started(self, record: Any) -> None:
        log = Path(record.log[0]) if record.log else None
        name = " ".join([record.rule_name, *map(str, record.wildcards.values())])
        self._progress.start(record.jobid, Started(record.rule_name, name, log, time.monotonic()))
        self._screen.changed()

    def _finished(self, record: Any) -> None:
        job = self._progress.finish(record.job_id, time.monotonic())
        self._screen.changed(job.name if job else "")

    def _failed(self, record: Any) -> None:
        self._tell_failure(record.jobid, record.rule_name, record.log)

    def _group_failed(self, record: Any) -> None:
        for info in record.job_error_info:
            self._tell_failure(info["jobid"], info["rule_name"], info["log"])
        for log in record.aux_logs:
            self._screen.tell(f"The group's log: {log}")

    def _tell_failure(self, number: int, rule: str, logs: list[str]) -> None:
        job = self._progress.fail(number)
        said = [f"{job.name if job else rule} failed."]
        for log in logs:
            lines = last_lines(Path(log), LINES_OF_A_FAILURE)
            said += [f"The end of {log}:" if lines else f"Its log is empty: {log}"]
            said += [f"    {line}" for line in lines]
        self._screen.tell("\n".join(said))
        self._screen.changed()

    @property
    def writes_to_stream(self) -> bool:
        """Yes: Snakemake then prints nothing itself."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """No."""
        return False

    @property
    def has_filter(self) -> bool:
        """Yes: what `--quiet` hides is counted here all the same."""
        return True

    @property
    def has_formatter(self) -> bool:
        """Yes."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """No."""
        return False


def _usual(settings: Any) -> logging.Handler:
    """What Snakemake prints with where there is no plugin."""
    from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter

    stream = sys.stdout if settings.stdout else sys.stderr
    handler = ColorizingTextHandler(nocolor=settings.nocolor, stream=stream)
    about = settings.quiet, settings.debug_dag, settings.verbose, settings.dryrun
    handler.addFilter(DefaultFilter(*about, settings.printshellcmds))
    handler.setFormatter(DefaultFormatter(settings.quiet, settings.show_failed_logs))
    return handler
