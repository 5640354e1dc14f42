"""Arrays that do not fit in memory, in a temporary file, of which rows are read when asked for."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np


@dataclass(frozen=True)
class Kept:
    """An array in a spool's file; `[rows]` copies what is asked for, and only that, to memory.

    A lasting memory map would count as the process's memory, and the system allows a process some
    65,000 of them.
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
    """Arrays in one temporary file without a name, which goes with the process."""

    def __init__(self, folder: Path) -> None:
        """`folder` needs room for all of them."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (as long as its arrays)

    def keep(self, array: np.ndarray) -> Kept | np.ndarray:
        """The same (n, D) array, lying in the file; an empty one as it is."""
        if not len(array):
            return array
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(np.ascontiguousarray(array).data)
        self._file.flush()
        return Kept(self._file, start, array.shape, array.dtype)
