"""Statuses of slides, and errors by cause: the user's input, a single slide, or the disk."""

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
    """Status of a slide; the column `status` of the `qc` table."""

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
    """Error that the user can fix; the message states what was found, where, and what to do."""


class SlideError(Exception):
    """Error of a single slide, which is left out; the run continues.

    Args:
        status: status of the slide; never `ok`.
        detail: one sentence for the column `detail` of the `qc` table.
    """

    def __init__(self, status: Status, detail: str) -> None:
        detail = one_line(detail)
        super().__init__(f"{status.value}: {detail}")
        self.status = status
        self.detail = detail


def one_line(text: str) -> str:
    """Shorten a library's message to one line of at most `MAX_DETAIL` characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_DETAIL else f"{line[: MAX_DETAIL - 1]}…"


def disk_sentence(error: OSError, results: Path) -> str:
    """Return a message if a disk is full, over quota or read-only; empty for other errors.

    Args:
        error: error raised while writing; it seldom names the file.
        results: folder that is written to, in addition to that of temporary files.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return ""
    named = [Path(str(error.filename)).parent] if error.filename else []
    places = [*named, results, Path(tempfile.gettempdir())]
    if error.errno == errno.EROFS:
        return (
            f"{os.strerror(error.errno)}: {_existing(places[0])}. Mount it writable, or write to"
            " another folder, and run again: finished results stay."
        )
    folders = dict.fromkeys(_existing(folder) for folder in places)
    free = ", ".join(f"{f}: {shutil.disk_usage(f).free / 1e9:.2f} GB free" for f in folders)
    return (
        f"{os.strerror(error.errno)}. {free}. Free space, or raise the quota, and run again: "
        "finished results stay, partly written ones are removed."
    )


@contextmanager
def translate_disk_errors(results: Path) -> Iterator[None]:
    """Context that turns errors of a full or read-only disk into a `StainsslError`.

    Args:
        results: folder that is written to.

    Raises:
        StainsslError: a disk is full, over quota or read-only; see `disk_sentence`.
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
