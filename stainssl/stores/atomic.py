"""A file or folder has its right name only when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _swap_in(made: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(made, path)
        return
    # A non-empty folder cannot be renamed over: the old one steps aside for the rename.
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    os.rename(path, old)
    os.rename(made, path)
    shutil.rmtree(old)


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
    made = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    _remove(made)
    try:
        yield made
        _swap_in(made, path)
    finally:
        _remove(made)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with replacing(path) as made:
        made.write_text(text, encoding="utf-8")
