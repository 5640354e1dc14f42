"""Whose fault a failure is: one slide's, which becomes a status, or the machine's, which raises."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from stainssl.errors import SlideError, StainsslError, Status
from stainssl.runtime.limits import LateError, library_call, within_limit
from stainssl.slides.hdf5_patch import file_of

# What the machine, the mount or the network did: never a slide's own status.
ENVIRONMENT_ERRNOS = frozenset(
    {
        *(errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
        *(errno.ESTALE, errno.EDQUOT, errno.ENODEV, errno.ENXIO, errno.ENOTCONN),
        *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN),
        *(errno.ENETUNREACH, errno.ECONNRESET),
    }
)

# OpenSlide gives no error number, only the C library's sentence inside its own.
_ENVIRONMENT_SENTENCES = {os.strerror(number): number for number in ENVIRONMENT_ERRNOS}
_TRUNCATED_WORDS = ("short read", "premature end", "end of file", "truncated")
_UNSUPPORTED_WORDS = ("unsupported", "not supported")
CALL_SECONDS = 600.0  # for one call of a reader; a region of 4 megapixels takes less than one
DISK_SECONDS = 60.0  # for a byte of each end of a file
T = TypeVar("T")


def environment_errno(error: BaseException) -> int | None:
    """The error number where the machine or the mount failed, None where the file is to blame.

    Reads the number of an `OSError`, and the C library's sentence inside any other message
    (OpenSlide and Pillow pass it on as text).
    """
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in ENVIRONMENT_ERRNOS else None
    found = (n for sentence, n in _ENVIRONMENT_SENTENCES.items() if sentence in str(error))
    return next(found, None)


def _status_of(error: BaseException) -> Status:
    message = str(error).lower()
    if any(word in message for word in _UNSUPPORTED_WORDS):
        return Status.UNSUPPORTED
    if "corrupt" not in message and any(word in message for word in _TRUNCATED_WORDS):
        return Status.TRUNCATED
    return Status.UNREADABLE


def _touch(path: Path) -> None:
    """Read one byte of each end, so that a mount that went away speaks for itself."""
    if path.is_dir():
        return
    with file_of(path).open("rb") as file:
        file.read(1)
        file.seek(max(0, os.fstat(file.fileno()).st_size - 1))
        file.read(1)


def in_time(path: Path, minutes: float, work: Callable[[], T]) -> T:
    """`work()` on a slide, which costs the slide where a reader does not come back.

    The work may go on in a thread of its own: it must not change what others read.

    Args:
        path: the slide's file.
        minutes: that the work may take.

    Raises:
        SlideError: `unreadable`: the limit is past, or one call of a reader took `CALL_SECONDS`.
        OSError: the disk or the mount does not answer.
        Whatever `work` raised.
    """
    try:
        return within_limit(work, 60 * minutes, CALL_SECONDS)
    except LateError as late:
        _require_answer(path)
        raise SlideError(Status.UNREADABLE, f"Given up: {late}.") from late


def _require_answer(path: Path) -> None:
    """Read a byte of each end of a file, whose disk may be what a reader waits for."""
    try:
        within_limit(partial(_touch, path), DISK_SECONDS)
    except LateError as late:
        message = f"the disk does not respond ({late}). Wanted"
        raise OSError(errno.ETIMEDOUT, message, str(path)) from late


@contextmanager
def translate_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what a reading library raises into the slide's status or the machine's error.

    Args:
        path: the slide's file.
        doing: what was tried, as "reading level 1 at x 0, y 512".

    Raises:
        SlideError: `unreadable`, `truncated` or `unsupported`, by the library's message.
        StainsslError: the reader's library is not installed, or not whole.
        OSError: the machine, the disk or the mount failed, or the file went away meanwhile.
    """
    try:
        with library_call(doing):
            yield
    except (SlideError, StainsslError):
        raise
    except ImportError as error:
        raise StainsslError(
            f"{path}: {doing} failed: {error}. The reader's library cannot be used on this machine:"
            " `stainssl doctor` shows what to install."
        ) from error
    except Exception as error:
        number = environment_errno(error)
        if number is not None:
            message = f"{os.strerror(number)} while {doing} of"
            raise OSError(number, message, str(path)) from error
        if not isinstance(error, PermissionError):
            _touch(path)
        detail = f"{doing} failed: {error}".rstrip(".")
        raise SlideError(_status_of(error), f"{detail}.") from error


def _nearest_folder(path: Path, root: Path) -> Path | None:
    """The deepest folder above `path` that exists, no higher than `root`; None: not even that."""
    inside = [folder for folder in path.parents if folder == root or root in folder.parents]
    return next((folder for folder in inside or [path.parent] if folder.is_dir()), None)


def require_file(path: Path, root: Path) -> None:
    """Tell a slide that is missing from a mount that is gone.

    Args:
        path: the slide's file (or folder, for formats that are folders).
        root: the cohort's folder, under which `path` stands.

    Raises:
        SlideError: `missing` where other files stand in its folder; `unreadable` where it has
            zero bytes.
        OSError: the cohort's folder or the folder above the file is gone or empty, as under a
            mount point without its mount; or the file system failed.
    """
    try:
        size_bytes = file_of(path).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        folder = _nearest_folder(path, root)
        if folder is None or not root.is_dir() or not any(folder.iterdir()):
            message = f"the folder {folder or root} is gone or empty: is its disk mounted? Wanted"
            raise OSError(errno.ENODEV, message, str(path)) from None
        raise SlideError(Status.MISSING, f"{path} does not exist.") from None
    if size_bytes == 0:
        raise SlideError(Status.UNREADABLE, f"{path} has zero bytes.")
