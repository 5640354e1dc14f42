"""Write the number of GPUs of a job to its log, and read it from there."""

from __future__ import annotations

import logging
import re

log = logging.getLogger(__name__)
TOLD = "computing on %d GPU(s)"
_TOLD = re.compile(r"computing on (\d+) GPU\(s\)")


def tell_gpus(count: int) -> None:
    """Log the number of GPUs of this job; nothing if it is 0."""
    if count:
        log.info(TOLD, count)


def gpus_told(text: str) -> int:
    """Number of GPUs that a job used, according to the text of its log; 0 if not logged."""
    return max(map(int, _TOLD.findall(text)), default=0)
