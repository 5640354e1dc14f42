"""HDF5 files for other tools, written in one go when they are whole."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from stainssl.stores.atomic import write_bytes


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yield an empty HDF5 file in memory, and write it to `path` when the block ends well.

    On a disk that fills up, HDF5 raises from where objects are freed, and may end the process; a
    plain file raises where it is written.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w") as h5:
        yield h5
    write_bytes(path, memory.getbuffer())
