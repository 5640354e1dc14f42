"""A lock on a folder of checkpoints: one training at a time writes into it, on any host."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from stainssl.errors import StainsslError

log = logging.getLogger(__name__)

LOCK = "lock"  # file name; the file stays, empty, after a training
BEAT_SECONDS = 20.0  # between two heartbeats of the holder
DEAD_AFTER_SECONDS = 120.0  # without a heartbeat, for a holder on another host
LOOK_SECONDS = 5.0  # between two attempts to get the lock
TELL_SECONDS = 300.0  # between two messages while waiting
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """The process that has the lock, with what is needed to find and stop it."""

    host: str
    pid: int
    since: str  # local time
    job: str = ""  # SLURM job, if any

    @staticmethod
    def this_process() -> Holder:
        """The calling process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return Holder(socket.gethostname(), os.getpid(), since, os.environ.get("SLURM_JOB_ID", ""))

    @staticmethod
    def read(path: Path) -> Holder | None:
        """The process named in a lock file; None if it names none."""
        try:
            return Holder(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    @property
    def how_to_end(self) -> str:
        """The command that stops the process."""
        if self.job:
            return f"scancel {self.job}"
        here = self.host == socket.gethostname()
        return f"kill {self.pid}" if here else f"ssh {self.host} kill {self.pid}"


@contextmanager
def training_lock(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a folder of checkpoints while the block runs.

    The lock is the system's (`flock`), which is released when the process ends, however it ends.
    If the file system does not lock across hosts, the heartbeat of the holder decides: the
    modification time of the file, renewed every `BEAT_SECONDS`.

    Args:
        folder: created if missing.
        wait: wait for the holder to end, instead of raising at once.

    Raises:
        StainsslError: another process is training there, and `wait` is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+", encoding="utf-8") as file:
        _acquire(file, path, wait)
        _write(file, json.dumps(asdict(Holder.this_process())))
        with _signs_of_life(path):
            try:
                yield
            finally:
                _write(file, "")


def _write(file: IO[str], text: str) -> None:
    file.truncate(0)  # opened to append, so that the text is written at the start
    file.write(text)
    file.flush()


def _acquire(file: IO[str], path: Path, wait: bool) -> None:
    told = -math.inf
    while not _is_ours(file, path):
        holder = Holder.read(path)
        name = str(holder or "another process")
        if not wait:
            end = f", or stop it: {holder.how_to_end}" if holder else ""
            raise StainsslError(
                f"{path.parent}: {name}, is training into this folder. Wait until it ends{end}."
            )
        if time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            end = f" To stop it: {holder.how_to_end}" if holder else ""
            log.warning("%s is training into %s: waiting for it.%s", name, path.parent, end)
        time.sleep(LOOK_SECONDS)


def _is_ours(file: IO[str], path: Path) -> bool:
    """Whether the lock was taken, and no holder on another host has a recent heartbeat."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        has_locks = True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        has_locks = False
    holder = Holder.read(path)
    if holder is None:
        return True
    if holder.host == socket.gethostname():
        return has_locks or not _is_alive(holder.pid)
    return _file_system_now(path.parent) - path.stat().st_mtime > DEAD_AFTER_SECONDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _file_system_now(folder: Path) -> float:
    """Current time by the clock of a folder's file system; a server's clock may differ."""
    probe = folder / f".clock-{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def _signs_of_life(path: Path) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, stop.wait), daemon=True, name="lock")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _beat(path: Path, stopped: Callable[[float], bool]) -> None:
    while not stopped(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # a failing disk stops the training where it writes
            os.utime(path)
