"""Make sheets from public data sets as they are distributed.

A release is a module with a `RELEASE`, and one line in `registry.py`. Only file names and the
release's own tables are read; no slide is opened or copied.
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
    """Read the folder of a release as a sheet, with its problems.

    The same folder gives the same sheet. The result is cached for the life of the process.

    Args:
        name: a key of `RELEASES`.
        root: the folder to which the release was unpacked.
        options: values of the release's `options`; the others have their defaults.

    Raises:
        KeyError: there is no such release.
        StainsslError: the folder is not that of the release, or a table lacks a column.
        ValueError: an option or its value is unknown.
    """
    chosen = find(name).chosen(options or {})
    return _load_cached(name, Path(root), tuple(sorted(chosen.items())))


@lru_cache(maxsize=32)
def _load_cached(name: str, root: Path, options: tuple[tuple[str, str], ...]) -> Imported:
    from stainssl.datasets.validate import validated

    release = find(name)
    return validated(release, release.read(root, dict(options)))
