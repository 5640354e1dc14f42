"""Description of the machine on which a benchmark runs."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
