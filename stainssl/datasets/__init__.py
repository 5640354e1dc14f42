"""Public data sets as they are distributed: a folder with its own tables becomes a sheet.

A release is a module with one `RELEASE`, and a line in `registry.py`. Nothing is read but names of
files and the release's own tables; no slide is opened, and none is copied.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from stainssl.datasets.registry import RELEASES, find

if TYPE_CHECKING:
    from stainssl.datasets.release import Imported, Options

__all__ = ["RELEASES", "find", "load"]


def load(name: str, root: Path, options: Options | None = None) -> Imported:
    """The sheet of a release's folder, and what is wrong with the folder.

    The same folder gives the same sheet. It is read once in a process, so that all that asks for it
    there sees the same.

    Args:
        name: a key of `RELEASES`.
        root: the folder that the release was unpacked to.
        options: keys of the release's `options`; the rest has its default.

    Raises:
        StainsslError: the folder is not the release's, or a table lacks a column.
        ValueError: an option is unknown or does not take its value.
    """
    chosen = find(name).chosen(options or {})
    return _loaded(name, Path(root), tuple(sorted(chosen.items())))


@lru_cache(maxsize=32)
def _loaded(name: str, root: Path, options: tuple[tuple[str, str], ...]) -> Imported:
    from stainssl.datasets.validate import validated

    release = find(name)
    return validated(release, release.read(root, dict(options)))
