"""A cheap key of a file's content, by which one scan or set of weights is told from another."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

SAMPLES = 8  # blocks of a slide that are compared, spread over it
SAMPLE_BYTES = 64 * 1024


def content_key(path: Path, samples: int = SAMPLES) -> bytes:
    """A hash of a file's size and of blocks spread over it, 16 bytes; a time plays no part.

    Files that agree in all blocks, of half a megabyte in all, are one for any purpose here.

    Args:
        samples: how many blocks; twice as many see a change of half the length.

    Raises:
        OSError: it cannot be read.
    """
    stat = path.stat()
    return _key(path, samples, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@lru_cache(maxsize=100_000)
def _key(path: Path, samples: int, size_bytes: int, *_state: int) -> bytes:
    """The key of a file in one state: `_state` is what else changes when the file does."""
    digest = hashlib.blake2b(str(size_bytes).encode(), digest_size=16)
    last = max(0, size_bytes - SAMPLE_BYTES)
    with path.open("rb") as file:
        for start in sorted({last * i // (samples - 1) for i in range(samples)}):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()
