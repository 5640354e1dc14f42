"""What happened to a slide, and whose fault an error is."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

MAX_DETAIL = 300


class Status(StrEnum):
    """What a slide ended as; the column `status` of the `qc` table."""

    OK = "ok"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NO_MPP = "no-mpp"
    ABSURD_MPP = "absurd-mpp"
    TOO_SMALL = "too-small"
    TOO_COARSE = "too-coarse"
    NOT_BRIGHTFIELD = "not-brightfield"
    CHANGED = "changed"
    MISSING = "missing"
    UNSUPPORTED = "unsupported"


class StainsslError(Exception):
    """The user can fix this: the message says what was found, where, and what to do."""


class SlideError(Exception):
    """One slide's own fault: it costs that slide, never the run.

    Args:
        status: what the slide ends as; never `ok`.
        detail: one sentence for the `detail` column of the `qc` table.
    """

    def __init__(self, status: Status, detail: str) -> None:
        detail = one_line(detail)
        super().__init__(f"{status.value}: {detail}")
        self.status = status
        self.detail = detail


def one_line(text: str) -> str:
    """A library's message as one line of at most `MAX_DETAIL` letters: a cell of a table."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_DETAIL else f"{line[: MAX_DETAIL - 1]}…"


def disk_sentence(error: OSError, results: Path) -> str:
    """What to tell of a disk that is full or cannot be written; empty for any other error.

    Args:
        error: what writing raised; it seldom names its file.
        results: the folder that is written to, beside that of temporary files.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return ""
    named = [Path(str(error.filename)).parent] if error.filename else []
    places = [*named, results, Path(tempfile.gettempdir())]
    folders = dict.fromkeys(_existing(folder) for folder in places)
    free = ", ".join(f"{f}: {shutil.disk_usage(f).free / 1e9:.2f} GB free" for f in folders)
    return (
        f"{os.strerror(error.errno)}. {free}. Free space, or raise the quota, and run again: "
        "finished results stay, partly written ones are removed."
    )


@contextmanager
def disk_faults_told(results: Path) -> Iterator[None]:
    """Raise what `disk_sentence` says instead of the error that a full disk is.

    Raises:
        StainsslError: the disk is full or cannot be written.
    """
    try:
        yield
    except OSError as error:
        if sentence := disk_sentence(error, results):
            raise StainsslError(sentence) from error
        raise


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())
