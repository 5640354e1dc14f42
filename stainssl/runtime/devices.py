"""Which GPUs a job computes on: those that it was given, and that no other job of ours holds."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from pathlib import Path
from typing import IO

import torch

from stainssl.runtime.gpus import tell_gpus

log = logging.getLogger(__name__)
VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: dict[str, IO[str]] = {}  # locks, until the process ends and the system frees them


def take(count: int = 1) -> None:
    """Leave this process, and those that it starts, `count` of the GPUs that it sees (0: all).

    A scheduler that gives a job its devices (SLURM) shows it those only, and there is nothing to
    choose. Where jobs see all GPUs of a machine (`--cores all --resources gpu=N`), each takes the
    first that are free: a GPU is held by a lock in the temporary folder that goes with the process,
    however it ends. Where too few are free they are shared, and the log says so. It also says how
    many GPUs there are to compute on, if any.

    To be called before CUDA is used: afterwards it reads no more which devices it may see. A
    process that another of the same training started has its devices already, and keeps them.
    """
    if is_slurm_step() and os.environ["SLURM_PROCID"] == "0" and torch.cuda.is_available():
        tell_gpus(int(os.environ["SLURM_NTASKS"]))  # each process has one
    if _held or is_one_of_several():
        return
    names = _visible()
    if 0 < count < len(names):
        _take_free(names, count)
    if torch.cuda.is_available():
        tell_gpus(len(_visible()))


def _take_free(names: list[str], count: int) -> None:
    free = [name for name in names if len(_held) < count and _hold(name)]
    if len(free) < count:
        log.warning(
            "%d of %d GPUs are free, %d requested: sharing them; run fewer jobs at a time",
            len(free), len(names), count,
        )  # fmt: skip
        first = os.getpid() % len(names)
        free += [n for n in names[first:] + names[:first] if n not in free][: count - len(free)]
    os.environ[VISIBLE] = ",".join(free)


def pick() -> str:
    """The one device to compute on: `cuda`, a GPU of this process's own, or `cpu`."""
    take(1)
    return "cuda" if torch.cuda.is_available() else "cpu"


def is_one_of_several() -> bool:
    """Whether `torchrun`, lightning or srun started this process beside others for one training."""
    return is_slurm_step() or "LOCAL_RANK" in os.environ


def is_slurm_step() -> bool:
    """Whether srun started several tasks; one task starts the other processes itself."""
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ


def _visible() -> list[str]:
    given = os.environ.get(VISIBLE)
    if given is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [name.strip() for name in given.split(",") if name.strip()]


def _hold(name: str) -> bool:
    # SLURM numbers the devices of each of its jobs from 0: another job's 0 is another device.
    owner = f"{os.getuid()}-{os.environ.get('SLURM_JOB_ID', '')}"
    path = Path(tempfile.gettempdir()) / f"stainssl-gpu-{owner}-{name}.lock"
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return False
    _held[name] = lock
    return True
