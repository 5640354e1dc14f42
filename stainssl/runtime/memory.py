"""Memory of the GPU or the machine, without importing torch: for warnings before any job."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import lru_cache

SECONDS = 10.0  # time limit of nvidia-smi, which may have to wake the driver


def memory_bytes() -> int:
    """Total memory (bytes) of the smallest visible GPU; without a GPU, that of the machine."""
    return min(_gpus()) if _gpus() else machine_bytes()


def machine_bytes() -> int:
    """Total memory (bytes) of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@lru_cache(maxsize=1)
def _gpus() -> tuple[int, ...]:
    """Total memory (bytes) of each visible NVIDIA GPU; empty without a working driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if program is None or visible in ("", "-1"):
        return ()
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    command += [f"--id={visible}"] if visible else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    words = (line.strip() for line in done.stdout.splitlines())
    return tuple(int(word) * 2**20 for word in words if word.isdigit())
