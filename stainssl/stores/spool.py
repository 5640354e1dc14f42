"""Arrays that do not fit in memory, in a temporary file, read as if they did."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np


class Spool:
    """Vectors in one temporary file without a name, which goes with the process.

    Rows are read from it as if they were in memory; the system keeps what it has room for.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` needs room for all of them."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (as long as its arrays)

    def keep(self, features: np.ndarray) -> np.ndarray:
        """The same (n, D) array, lying in the file."""
        if not len(features):
            return features
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(np.ascontiguousarray(features).data)
        self._file.flush()
        return np.memmap(self._file, features.dtype, mode="c", offset=start, shape=features.shape)
