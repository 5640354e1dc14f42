"""Atomic writes: a file or folder appears under its name only when it is complete."""

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
_NAME_LETTERS = 160  # characters of a name kept in its temporary name: file systems allow 255 bytes


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
    # A rename cannot replace a non-empty folder: the old one is moved aside first.
    old = _temporary(path, "old")
    os.rename(path, old)
    os.rename(made, path)
    shutil.rmtree(old)


@lru_cache(maxsize=1024)
def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes of this machine from a folder.

    A folder is scanned once per process. A version that was moved aside, and whose replacement is
    missing, is restored.
    """
    with os.scandir(folder) as entries:
        found = [_TEMPORARY.fullmatch(entry.name) for entry in entries]
    for name in found:
        if name is None or not is_left_over(name[2]):
            continue
        path, whole = folder / name[0], folder / name[3]
        with suppress(OSError):  # removed by another process meanwhile, or owned by another user
            if name[1] == "old" and not whole.exists():
                os.rename(path, whole)
            else:
                _remove(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename it to `path` when the block succeeds.

    Args:
        path: file or folder to write; parent folders are created. An existing one is replaced; if
            the block raises, it is left untouched.

    Yields:
        A path that does not exist yet, with the suffix of `path`.

    Raises:
        FileNotFoundError: the block wrote nothing.
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
    """Write `data` to `path` atomically."""
    with replacing(path) as made:
        made.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically."""
    with replacing(path) as made:
        made.write_text(text, encoding="utf-8")
