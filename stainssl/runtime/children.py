"""Child processes that end with the process that started them, however that one ends.

A child that outlives a killed job keeps the job's output open: whoever reads it (`tee`, Snakemake,
SLURM) waits for as long as the child lives.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CHECK_SECONDS = 1.0


def end_with_parent(parent_pid: int | None = None) -> None:
    """End this process with SIGKILL once its parent is gone; to be called in a child, once.

    On Linux the kernel does it (`prctl`), when the thread that started the child ends. Beside it,
    and elsewhere, a thread looks every second whether the parent is still the same.

    Args:
        parent_pid: of the process that started this one; by default the present parent.
    """
    parent_pid = parent_pid or os.getppid()
    if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    watch = threading.Thread(target=_watch, args=(parent_pid,), daemon=True, name="parent")
    watch.start()


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
