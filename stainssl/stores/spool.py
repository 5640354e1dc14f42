"""Arrays too large for memory, kept in a temporary file and read by rows."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np


@dataclass(frozen=True)
class SpooledArray:
    """An array in the file of a `Spool`; indexing copies only the requested rows to memory.

    The file is mapped anew for each access: a permanent memory map would count as memory of the
    process, and the system limits a process to some 65,000 maps.
    """

    file: IO[bytes]
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        mapped = np.memmap(self.file, self.dtype, mode="r", offset=self.start, shape=self.shape)
        return np.array(mapped[rows])


class Spool:
    """Arrays in one anonymous temporary file, which is removed when the process ends."""

    def __init__(self, folder: Path) -> None:
        """Create the file in `folder`, which needs space for all arrays."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (as long as its arrays)

    def keep(self, array: np.ndarray) -> SpooledArray | np.ndarray:
        """Move an (n, D) array to the file; an empty one is returned unchanged."""
        if not len(array):
            return array
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(np.ascontiguousarray(array).data)
        self._file.flush()
        return SpooledArray(self._file, start, array.shape, array.dtype)
