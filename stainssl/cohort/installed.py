"""Optional packages that a config or its slides need and that are not installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from stainssl import extras
from stainssl.cohort.sheet import read_sheet, rows_source
from stainssl.config import Config
from stainssl.errors import SlideError
from stainssl.extras import how_to_install, is_installed
from stainssl.slides.errors import translate_errors
from stainssl.slides.readers import ON_DEMAND, READERS


def missing(config: Config, thorough: bool = False) -> list[str]:
    """A message for each config key, and the slides of each cohort, that need a missing package.

    Args:
        config: the config.
        thorough: open the slide files to determine their format; otherwise it follows from names.
    """
    absent = [reader for reader in ON_DEMAND if not is_installed(reader)]
    names = config.cohorts if absent and config.needs_slides else ()
    of_slides = (s for name in names for s in _of_slides(config, name, absent, thorough))
    return [*extras.problems(config), *of_slides]


def _of_slides(config: Config, name: str, absent: list[str], thorough: bool) -> Iterator[str]:
    """A message for each missing reader that slides of a cohort need."""
    cohort = config.cohorts[name]
    if cohort.demo is not None or cohort.kind != "slides" or config.slides.reader != "auto":
        return
    paths = read_sheet(config, name)["path"]
    for reader in absent:
        slides = [path for path in paths if _is_read_by(reader, Path(path), thorough)]
        if slides:
            yield (
                f"{rows_source(config, name)}: {len(slides)} of {len(paths)} slides, such as"
                f" {slides[0]}, are read by {reader}, which is not installed:"
                f" {how_to_install(reader)}"
            )


def absent_reader(path: Path) -> str | None:
    """The reader that `auto` would choose for a file, if it is not installed; else None."""
    absent = (reader for reader in ON_DEMAND if not is_installed(reader))
    return next((reader for reader in absent if _is_read_by(reader, path, True)), None)


def _is_read_by(reader: str, path: Path, thorough: bool) -> bool:
    if not thorough:
        return path.name.lower().endswith(ON_DEMAND[reader])
    if not path.exists():
        return False
    first = (name for name in READERS if import_module(READERS[name]).recognises(path))
    try:
        with translate_errors(path, "opening"):
            return next(first, None) == reader
    except SlideError:  # reported by `tile`
        return False
