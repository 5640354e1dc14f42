"""One picture of many in an HDF5 file: the path `folder/file.h5#17` is its 17th, counted from 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DATASET = "x"
SUFFIXES = (".h5", ".hdf5")


def file_of(path: str | Path) -> Path:
    """The file that a picture stands in; any other path as it is."""
    text, _, number = str(path).rpartition("#")
    return Path(text) if number.isdigit() and text.lower().endswith(SUFFIXES) else Path(path)


def is_hdf5_patch(path: Path) -> bool:
    """Whether the path names one picture of an HDF5 file."""
    return file_of(path) != Path(path)


def read_picture(path: Path) -> np.ndarray:
    """(h, w, 3) uint8 RGB.

    Raises:
        OSError: the file cannot be read or is no HDF5.
        KeyError, IndexError, ValueError: it has no such picture, or pictures of another kind.
    """
    import h5py

    with h5py.File(file_of(path), "r") as file:
        picture = np.asarray(file[DATASET][int(str(path).rpartition("#")[2])])
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"pictures are {picture.shape} {picture.dtype}, not (h, w, 3) uint8")
    return picture
