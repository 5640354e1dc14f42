"""Write the number of GPUs of a job to its log, and read it from there."""

from __future__ import annotations

import logging
import re

log = logging.getLogger(__name__)
GPU_MESSAGE = "computing on %d GPU(s)"
_GPU_PATTERN = re.compile(re.escape(GPU_MESSAGE).replace("%d", r"(\d+)"))


def log_gpu_count(count: int) -> None:
    """Log the number of GPUs of this job; nothing if it is 0."""
    if count:
        log.info(GPU_MESSAGE, count)


def gpu_count_from_log(text: str) -> int:
    """Number of GPUs that a job used, according to the text of its log; 0 if not logged."""
    return max(map(int, _GPU_PATTERN.findall(text)), default=0)
