"""Atomic writes: a file or folder gets its name only once it is complete."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from stainssl.runtime.leftovers import is_left_over, owner_mark

_TEMPORARY = re.compile(r"\.(tmp|old)-([0-9a-f]{8}-\d+)-(.+)", re.DOTALL)
_NAME_LETTERS = (
    160  # letters of a name that its temporary name ends with: file systems allow 255 bytes
)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _temporary(path: Path, kind: str) -> Path:
    return path.with_name(f".{kind}-{owner_mark()}-{path.name[-_NAME_LETTERS:]}")


def _swap_in(made: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(made, path)
        return
    # A non-empty folder cannot be renamed over: the old one steps aside for the rename.
    old = _temporary(path, "old")
    os.rename(path, old)
    os.rename(made, path)
    shutil.rmtree(old)


@lru_cache(maxsize=1024)
def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine left in a folder; once per folder and process.

    A version that was moved aside for a replacement that never came is restored.
    """
    with os.scandir(folder) as entries:
        found = [_TEMPORARY.fullmatch(entry.name) for entry in entries]
    for name in found:
        if name is None or not is_left_over(name[2]):
            continue
        path, whole = folder / name[0], folder / name[3]
        with suppress(OSError):  # another process removes it at the same time, or it is not ours
            if name[1] == "old" and not whole.exists():
                os.rename(path, whole)
            else:
                _remove(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename what was written there when the block ends well.

    Args:
        path: the file or folder to make; its parents are made. What is there already is replaced,
            and stays untouched where the block raises.

    Yields:
        A path that does not exist yet, with the suffix of `path`, for the caller to write.

    Raises:
        FileNotFoundError: the block ended without writing anything.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    made = _temporary(path, "tmp")
    _remove(made)
    try:
        yield made
        _swap_in(made, path)
    finally:
        _remove(made)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing(path) as made:
        made.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with replacing(path) as made:
        made.write_text(text, encoding="utf-8")
