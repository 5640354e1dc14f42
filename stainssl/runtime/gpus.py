"""How many GPUs a job computed on, in its log and out of it."""

from __future__ import annotations

import logging
import re

log = logging.getLogger(__name__)
TOLD = "computing on %d GPU(s)"
_TOLD = re.compile(r"computing on (\d+) GPU\(s\)")


def tell_gpus(count: int) -> None:
    """Say in the job's log how many GPUs it computes on; nothing where there are none."""
    if count:
        log.info(TOLD, count)


def gpus_told(text: str) -> int:
    """How many GPUs a job computed on, by its log; 0 where it says nothing."""
    return max(map(int, _TOLD.findall(text)), default=0)
