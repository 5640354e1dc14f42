"""A slide on slow storage is copied to a local folder, read there and removed."""

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

# Formats of which the file is only the index: their data stand beside it.
MANY_FILES = (".mrxs", ".dcm", ".vms", ".vmu", ".vsi", ".ets", ".bif.xml")
PREFIX = "stainssl-"


def _remove_leftovers(folder: Path) -> None:
    """Remove the copies of jobs of this machine that were killed."""
    for path in folder.glob(f"{PREFIX}*"):
        mark = path.name.removeprefix(PREFIX).rpartition("-")[0]
        if is_left_over(mark):
            shutil.rmtree(path, ignore_errors=True)


def _held_bytes(folder: Path) -> int:
    """Bytes of staged slides in the folder, those being copied with their final size."""
    held = 0
    for path in folder.glob(f"{PREFIX}*/*"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile by its own process
            held += path.stat().st_size
    return held


def _copy(path: Path, place: Path, size_bytes: int) -> None:
    with place.open("wb") as file:
        os.truncate(place, size_bytes)  # counts from now on
        with path.open("rb") as source:
            shutil.copyfileobj(source, file, 16 * 2**20)


@contextmanager
def staged(path: Path, folder: Path | None, most_bytes: int = 0) -> Iterator[Path]:
    """Where to read a slide: a copy in `folder`, or the slide itself.

    It is read where it is when no folder is given, when the folder would hold more than
    `most_bytes`, or when the slide is more than one file.

    Args:
        path: the slide.
        folder: local and fast; made where it is missing.
        most_bytes: that all staged slides of all processes may hold together.

    Yields:
        A path with the slide's own name; the copy is removed when the block ends.

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
