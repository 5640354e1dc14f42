"""Names of temporary files that identify their process, so that leftovers can be removed."""

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
    """Hash of the host name and the namespace of process ids: 8 hexadecimal digits."""
    spaces = Path("/proc/self/ns/pid")
    numbering = os.readlink(spaces) if spaces.is_symlink() else ""
    return hashlib.blake2s(f"{platform.node()} {numbering}".encode(), digest_size=4).hexdigest()


def owner_mark() -> str:
    """Machine and process id for the names of this process's temporary files: `1a2b3c4d-4711`."""
    return f"{_machine()}-{os.getpid()}"


def is_left_over(mark: str) -> bool:
    """Whether a mark belongs to a process of this machine that no longer exists.

    Always False for marks of other machines, whose processes cannot be seen.
    """
    found = _MARK.fullmatch(mark)
    if found is None or found[1] != _machine():
        return False
    try:
        os.kill(int(found[2]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it exists, and belongs to another user
        pass
    return False
