"""A cheap key of a file's content, by which one scan is told from another."""

from __future__ import annotations

import hashlib
from pathlib import Path

SAMPLES = 8  # blocks of a file that are compared, spread over it
SAMPLE_BYTES = 64 * 1024


def content_key(path: Path, size_bytes: int) -> bytes | None:
    """A hash of a file's size and of blocks spread over it; None where it cannot be read.

    Slides that agree in all blocks, of half a megabyte in all, are one scan for any purpose here.
    """
    digest = hashlib.blake2b(str(size_bytes).encode(), digest_size=16)
    last = max(0, size_bytes - SAMPLE_BYTES)
    try:
        with path.open("rb") as file:
            for start in sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)}):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    except OSError:
        return None
    return digest.digest()
