"""Staging: copying slides from slow storage to a local folder for the time they are read."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stainssl.runtime.leftovers import is_left_over, owner_mark

log = logging.getLogger(__name__)

# Formats whose data are in other files beside this one.
MANY_FILES = (".mrxs", ".dcm", ".vms", ".vmu", ".vsi", ".ets", ".bif.xml")
PREFIX = "stainssl-"


def _remove_leftovers(folder: Path) -> None:
    """Remove the copies of killed jobs of this machine."""
    for path in folder.glob(f"{PREFIX}*"):
        mark = path.name.removeprefix(PREFIX).rpartition("-")[0]
        if is_left_over(mark):
            shutil.rmtree(path, ignore_errors=True)


def _held_bytes(folder: Path) -> int:
    """Total size of the staged slides in bytes; a copy in progress counts with its final size."""
    held = 0
    for path in folder.glob(f"{PREFIX}*/*"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile by its process
            held += path.stat().st_size
    return held


def _copy(path: Path, place: Path, size_bytes: int) -> None:
    with place.open("wb") as file:
        os.truncate(place, size_bytes)  # reserves the size for other processes
        with path.open("rb") as source:
            shutil.copyfileobj(source, file, 16 * 2**20)


@contextmanager
def staged(path: Path, folder: Path | None, most_bytes: int = 0) -> Iterator[Path]:
    """Context manager that copies a slide to a local folder, and removes the copy afterwards.

    The slide is read in place if no folder is given, if the copies would exceed `most_bytes`, or
    if the slide consists of several files.

    Args:
        path: slide file.
        folder: local, fast folder; created if missing.
        most_bytes: largest total size of the staged slides of all processes.

    Yields:
        Path of the copy, with the slide's file name, or `path`.

    Raises:
        OSError: the slide cannot be read, or the folder cannot be written.
    """
    if folder is None or path.suffix.lower() in MANY_FILES or not path.is_file():
        yield path
        return
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    size_bytes = path.stat().st_size
    if _held_bytes(folder) + size_bytes > most_bytes:
        log.info("%s: read in place: the staging folder is full", path.name)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{owner_mark()}-", dir=folder) as made:
        place = Path(made) / path.name
        _copy(path, place, size_bytes)
        yield place
