"""The memory of the device to compute on, without torch: for warnings before any job."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import lru_cache

SECONDS = 10.0  # for nvidia-smi, which waits for a driver that sleeps


def memory_bytes() -> int:
    """The memory of the smallest GPU that may be used, used or not; without one, the machine's."""
    return min(_gpus()) if _gpus() else machine_bytes()


def machine_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@lru_cache(maxsize=1)
def _gpus() -> tuple[int, ...]:
    """Bytes of each NVIDIA GPU that this process may see; none where no driver answers."""
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
