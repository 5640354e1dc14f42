"""One training at a time writes into a folder of checkpoints, whatever host it runs on."""

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

LOCK = "lock"  # the file's name; it stays, empty, when nobody trains
BEAT_SECONDS = 20.0  # between two signs of life of the holder
DEAD_AFTER_SECONDS = 120.0  # without one, for a holder on another host
LOOK_SECONDS = 5.0
TELL_SECONDS = 300.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """Who trains: enough to find the process and to end it."""

    host: str
    pid: int
    since: str  # local time
    job: str = ""  # of SLURM

    @staticmethod
    def this_process() -> Holder:
        """The one that calls."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return Holder(socket.gethostname(), os.getpid(), since, os.environ.get("SLURM_JOB_ID", ""))

    @staticmethod
    def read(path: Path) -> Holder | None:
        """The one that a lock file names, None where it names nobody."""
        try:
            return Holder(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    @property
    def how_to_end(self) -> str:
        """The command that ends it."""
        if self.job:
            return f"scancel {self.job}"
        here = self.host == socket.gethostname()
        return f"kill {self.pid}" if here else f"ssh {self.host} kill {self.pid}"


@contextmanager
def training_lock(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a folder of checkpoints while the block runs.

    The lock is the system's (`flock`), so that it goes with its process, however that ends. Where
    the file system has none across hosts, the holder's sign of life decides: the file's time,
    renewed every `BEAT_SECONDS`.

    Args:
        folder: made where it is missing.
        wait: until the holder ends; else refuse at once.

    Raises:
        StainsslError: another process trains there, and it is not waited for.
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
    file.truncate(0)  # opened to append: what is written stands at the start
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
    """Whether the lock could be taken, and no holder on another host shows signs of life."""
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
    """Now by the clock that dates the files of a folder: a server's may differ from ours."""
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
        with contextlib.suppress(OSError):  # a full or absent disk ends the training elsewhere
            os.utime(path)
