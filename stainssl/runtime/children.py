"""Terminate child processes with their parent, even if the parent is killed.

A child that outlives a killed job keeps the job's output open, and whatever reads it (`tee`,
Snakemake, SLURM) waits until the child ends.
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
    """Kill this process (SIGKILL) once its parent has ended; call it once, in the child.

    On Linux, if called in the main thread, the kernel sends the signal (`prctl`) when the thread
    that started the child ends. On every system, a thread also checks once per second that the
    parent is still the same.

    Args:
        parent_pid: process id of the parent; by default the current parent.
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
