"""Choose the GPUs of a job: among those visible to it, ones that no other stainssl job uses."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from pathlib import Path
from typing import IO

import torch

from stainssl.runtime.gpus import log_gpu_count

log = logging.getLogger(__name__)
VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: dict[str, IO[str]] = {}  # locks, released by the system when the process ends


def reserve_gpus(count: int = 1) -> None:
    """Reserve GPUs for this process and its children through `CUDA_VISIBLE_DEVICES`.

    A scheduler such as SLURM shows a job only its own devices, and all of them are kept. If jobs
    see all GPUs of a machine (`--cores all --resources gpu=N`), each takes the first free ones. A
    GPU is reserved by a lock file in the temporary folder, which is released when the process
    ends for any reason. If too few GPUs are free, they are shared, with a warning. The number of
    GPUs is logged, if there are any.

    Call this before CUDA is initialised, since CUDA reads the visible devices only once. A process
    of a distributed training already has its devices and keeps them.

    Args:
        count: number of GPUs to reserve; 0 for all visible ones.
    """
    if is_slurm_step() and os.environ["SLURM_PROCID"] == "0" and torch.cuda.is_available():
        log_gpu_count(int(os.environ["SLURM_NTASKS"]))  # each process has one
    if _held or is_one_of_several():
        return
    names = _visible()
    if 0 < count < len(names):
        _reserve_free(names, count)
    if torch.cuda.is_available():
        log_gpu_count(len(_visible()))


def _reserve_free(names: list[str], count: int) -> None:
    free = [name for name in names if len(_held) < count and _hold(name)]
    if len(free) < count:
        log.warning(
            "%d of %d GPUs are free, %d requested: sharing them; run fewer jobs at a time",
            len(free), len(names), count,
        )  # fmt: skip
        first = os.getpid() % len(names)
        free += [n for n in names[first:] + names[:first] if n not in free][: count - len(free)]
    os.environ[VISIBLE] = ",".join(free)


def reserve_device() -> str:
    """Reserve one GPU and return `cuda`, or return `cpu` if there is none."""
    reserve_gpus(1)
    return "cuda" if torch.cuda.is_available() else "cpu"


def is_one_of_several() -> bool:
    """Whether this is one process of a distributed training (torchrun, lightning or srun)."""
    return is_slurm_step() or "LOCAL_RANK" in os.environ


def is_slurm_step() -> bool:
    """Whether srun started several tasks; a single task starts the other processes itself."""
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ


def _visible() -> list[str]:
    given = os.environ.get(VISIBLE)
    if given is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [name.strip() for name in given.split(",") if name.strip()]


def _hold(name: str) -> bool:
    # SLURM numbers the devices of each job from 0, so 0 is another device in another job.
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
