"""Which device a job computes on: a GPU that no other job of ours holds, or the CPU."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from pathlib import Path
from typing import IO

import torch

log = logging.getLogger(__name__)
_held: list[IO[str]] = []  # locks, until the process ends and the system frees them


def pick() -> str:
    """`cuda:N`, or `cpu` where there is no GPU.

    A scheduler that gives a job its device (SLURM) shows it that one only. Where jobs see all GPUs
    of a machine (`--cores all --resources gpu=N`), each takes the first that is free: a GPU is held
    by a lock in the temporary folder that goes with the process, however it ends. Where all are
    held, by more jobs than GPUs, they are shared.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        if _hold(_name(index)):
            return f"cuda:{index}"
    if not count:
        return "cpu"
    index = os.getpid() % count
    log.warning("all %d GPUs are held by other jobs: sharing cuda:%d; ask for fewer", count, index)
    return f"cuda:{index}"


def _name(index: int) -> str:
    """The GPU's own name, the same whatever part of the machine's GPUs a job is shown."""
    return str(getattr(torch.cuda.get_device_properties(index), "uuid", index))


def _hold(name: str) -> bool:
    path = Path(tempfile.gettempdir()) / f"stainssl-gpu-{os.getuid()}-{name}.lock"
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return False
    _held.append(lock)
    return True
