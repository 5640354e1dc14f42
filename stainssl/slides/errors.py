"""Classification of read errors: a fault of the slide (its status), or of the machine (OSError)."""

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

# Errors of the machine, the mount or the network, which never become a slide's status.
ENVIRONMENT_ERRNOS = frozenset(
    {
        *(errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
        *(errno.ESTALE, errno.EDQUOT, errno.ENODEV, errno.ENXIO, errno.ENOTCONN),
        *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN),
        *(errno.ENETUNREACH, errno.ECONNRESET),
    }
)

# OpenSlide gives no error number, only the C library's message within its own.
_ENVIRONMENT_SENTENCES = {os.strerror(number): number for number in ENVIRONMENT_ERRNOS}
_TRUNCATED_WORDS = ("short read", "premature end", "end of file", "truncated")
_UNSUPPORTED_WORDS = ("unsupported", "not supported")
CALL_SECONDS = 600.0  # limit of one call of a reader; a region of 4 megapixels takes less than 1 s
DISK_SECONDS = 60.0  # limit of reading a byte at each end of a file
T = TypeVar("T")


def environment_errno(error: BaseException) -> int | None:
    """Error number of a failure of the machine or the mount; None for a fault of the file.

    It is the number of an `OSError`, or found by the C library's message within another message
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
    """Read a byte at each end of a file, which raises OSError if its mount is gone."""
    if path.is_dir():
        return
    with file_of(path).open("rb") as file:
        file.read(1)
        file.seek(max(0, os.fstat(file.fileno()).st_size - 1))
        file.read(1)


def run_with_limits(path: Path, minutes: float, work: Callable[[], T]) -> T:
    """Run `work` on a slide within time limits.

    After a limit, the work may continue in its own thread: it must not change shared data.

    Args:
        path: slide file.
        minutes: limit of the work.
        work: function to run.

    Returns:
        The result of `work`.

    Raises:
        SlideError: `unreadable`: the limit is exceeded, or one call of a reader took
            `CALL_SECONDS`.
        OSError: the disk or mount does not respond.
        Exception: any exception of `work`.
    """
    try:
        return within_limit(work, 60 * minutes, CALL_SECONDS)
    except LateError as late:
        _require_answer(path)
        raise SlideError(Status.UNREADABLE, f"Given up: {late}.") from late


def _require_answer(path: Path) -> None:
    """Check that the disk of a file responds, by reading a byte at each end.

    Raises:
        OSError: it does not respond within `DISK_SECONDS`, or reading fails.
    """
    try:
        within_limit(partial(_touch, path), DISK_SECONDS)
    except LateError as late:
        message = f"the disk does not respond ({late}). Wanted"
        raise OSError(errno.ETIMEDOUT, message, str(path)) from late


@contextmanager
def translate_errors(path: Path, doing: str) -> Iterator[None]:
    """Context manager that translates exceptions of a reader's library.

    Args:
        path: slide file.
        doing: description of the operation, e.g. "reading level 1 at x 0, y 512".

    Raises:
        SlideError: `unreadable`, `truncated` or `unsupported`, according to the library's message.
        StainsslError: the reader's library cannot be imported.
        OSError: the machine, disk or mount failed, or the file has disappeared.
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
    """Deepest existing folder above `path`, within `root`; None if `root` does not exist either."""
    inside = [folder for folder in path.parents if folder == root or root in folder.parents]
    return next((folder for folder in inside or [path.parent] if folder.is_dir()), None)


def require_file(path: Path, root: Path) -> None:
    """Check that a slide file exists, and distinguish a missing slide from a missing mount.

    Args:
        path: slide file (or folder, for formats that are folders).
        root: folder of the cohort, above `path`.

    Raises:
        SlideError: `missing` if the nearest existing folder above it contains other files;
            `unreadable` if the file has zero bytes.
        OSError: the cohort's folder is missing, or the nearest existing folder is empty, as a
            mount point is when nothing is mounted; or the file system failed.
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


@contextmanager
def present_file(path: Path, root: Path) -> Iterator[None]:
    """Context manager that requires a slide file from its beginning to its end.

    Args:
        path, root: as for `require_file`.

    Raises:
        SlideError: as `require_file` does, also if the file disappears in between.
        OSError: as `require_file` does; a `FileNotFoundError` of the block if the file exists.
    """
    require_file(path, root)
    try:
        yield
    except FileNotFoundError as error:
        try:
            require_file(path, root)
        except SlideError as gone:
            detail = f"It disappeared while being read: {gone.detail}"
            raise SlideError(gone.status, detail) from error
        raise
