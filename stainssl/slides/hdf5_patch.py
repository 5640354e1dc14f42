"""Images in an HDF5 file: the path `folder/file.h5#17` is the image with index 17, from 0."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import h5py

DATASET = "x"
SUFFIXES = (".h5", ".hdf5")
MAX_PIXELS = 100_000_000  # per image, as for image files


def file_of(path: str | Path) -> Path:
    """HDF5 file of an image path such as `file.h5#17`; any other path is returned unchanged."""
    text, _, number = str(path).rpartition("#")
    return Path(text) if number.isdigit() and text.lower().endswith(SUFFIXES) else Path(path)


def is_hdf5_patch(path: Path) -> bool:
    """Whether the path is that of an image in an HDF5 file."""
    return file_of(path) != Path(path)


def read_picture(path: Path) -> np.ndarray:
    """Read an image of an HDF5 file: (h, w, 3) uint8 RGB.

    Raises:
        OSError: the file cannot be read or is not HDF5.
        KeyError, IndexError: there is no such dataset or image.
        ValueError: the dataset is in another file, or the images are too large or not RGB.
    """
    import h5py

    with h5py.File(file_of(path), "r") as file:
        pictures = own_dataset(file, DATASET)
        _check_pictures(pictures.shape[1:], pictures.dtype)
        return np.asarray(pictures[int(str(path).rpartition("#")[2])])


def _check_pictures(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise ValueError for images that are not (h, w, 3) uint8 or too large, before any is read."""
    if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
        raise ValueError(f"images are {shape} {dtype}, not (h, w, 3) uint8")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise ValueError(f"images are {shape[1]}×{shape[0]} px, above {MAX_PIXELS:,}")


def own_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Open a dataset whose values are stored in the file itself.

    HDF5 can refer to any file of the machine for the values of a dataset; such links are refused.

    Raises:
        KeyError: there is no such dataset.
        ValueError: the dataset is a link, or its values are in another file.
    """
    import h5py

    link = file.get(name, getlink=True)
    if isinstance(link, h5py.SoftLink):  # its path may lead through another file
        raise ValueError(f"{name} is a link to {link.path}: links are not followed")
    found = None if isinstance(link, h5py.ExternalLink) else file[name]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise ValueError(f"{name} is not stored in this file: external datasets are not followed")
    return found
