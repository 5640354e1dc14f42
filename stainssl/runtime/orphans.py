"""End a job whose Snakemake process has ended without ending its jobs (kill -9, out of memory).

The next run would start the same job again beside it, and discard what it computed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

# Environment variable: the line of /proc/PID/stat of Snakemake, set for its jobs by their shell.
STAT = "STAINSSL_SNAKEMAKE_STAT"
_CHECK_SECONDS = 2.0
_GRACE_SECONDS = 8.0  # for removing temporary files
_CHECKPOINT_SECONDS = 120.0  # for finishing a step of pretraining and writing a checkpoint


class _Process(NamedTuple):
    pid: int
    start: str  # in clock ticks since boot; differs if the pid is used again


def end_with_snakemake() -> None:
    """Watch the Snakemake process of this job, if any, and end the job once it has ended.

    Call it once, in the main thread. Nothing is watched without `/proc`, or if the process named in
    the environment is not visible, as in a container or on another host.
    """
    snakemake = _process(os.environ.get(STAT, ""))
    if snakemake is None or not _is_running(snakemake):
        return
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit(128 + signal.SIGTERM))
    arguments = (snakemake, threading.get_ident())
    threading.Thread(target=_watch, args=arguments, daemon=True, name="snakemake").start()


def _process(stat: str) -> _Process | None:
    """Return the process of a line of /proc/PID/stat; None for a zombie or an empty line."""
    fields = stat.rpartition(")")[2].split()  # the name before it may contain spaces
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    return _Process(int(stat.partition(" ")[0]), fields[19])


def _is_running(process: _Process) -> bool:
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:  # unknown, for example because too many files are open
        return True
    return _process(stat) == process


def _watch(snakemake: _Process, main_thread: int) -> None:
    while _is_running(snakemake):
        time.sleep(_CHECK_SECONDS)
    log.warning("Snakemake (process %d) has ended: this job ends as well", snakemake.pid)
    _end(main_thread)


def _end(main_thread: int) -> None:
    """End this process: by its handler of SIGTERM, else by `SystemExit`, at last by SIGKILL."""
    from multiprocessing import active_children

    handled = callable(signal.getsignal(signal.SIGTERM))  # pretraining writes a checkpoint
    signal.pthread_kill(main_thread, signal.SIGTERM if handled else signal.SIGUSR2)
    for child in active_children():  # a pool of processes would finish its calls first
        with suppress(ValueError):  # closed meanwhile
            child.kill()
    time.sleep(_CHECKPOINT_SECONDS if handled else _GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)  # for example inside a long call of a library
