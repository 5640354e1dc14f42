"""Whose a temporary file is: names that tell whether the process that made them is gone."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from functools import lru_cache
from pathlib import Path

_MARK = re.compile(r"([0-9a-f]{8})-(\d+)")


@lru_cache(maxsize=1)
def _machine() -> str:
    """This host and, in a container, its numbering of processes: 8 hexadecimal digits."""
    spaces = Path("/proc/self/ns/pid")
    numbering = os.readlink(spaces) if spaces.is_symlink() else ""
    return hashlib.blake2s(f"{platform.node()} {numbering}".encode(), digest_size=4).hexdigest()


def owner_mark() -> str:
    """What a temporary name of this process holds: machine and process id, as `1a2b3c4d-4711`."""
    return f"{_machine()}-{os.getpid()}"


def is_left_over(mark: str) -> bool:
    """Whether a mark is of a process of this machine that is gone.

    Another machine's processes cannot be seen: what they made is never called left over here.
    """
    found = _MARK.fullmatch(mark)
    if found is None or found[1] != _machine():
        return False
    try:
        os.kill(int(found[2]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # somebody else's
        pass
    return False
