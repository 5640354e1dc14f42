"""Atomic writing of HDF5 files for other tools."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from stainssl.stores.atomic import write_bytes


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yield an empty HDF5 file in memory, and write it to `path` when the block succeeds.

    If a disk is full, HDF5 raises in destructors and may end the process, while writing bytes
    to a file raises a regular error.

    Raises:
        OSError: the file cannot be written; an existing one is kept.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w") as h5:
        yield h5
    write_bytes(path, memory.getbuffer())
