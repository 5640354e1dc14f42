"""Pixel stores of a cohort that belong to its tiles."""

from __future__ import annotations

from pathlib import Path

from stainssl.config import Config


def stored_pixels(config: Config, cohort: str, part: str) -> Path | None:
    """Return the pixel store of a part; None if there is none, or only one of earlier tiles.

    The workflow makes the store of a streamed cohort only if a job needs it: one that was made
    before the cohort was streamed stays as it is when the part is tiled again.
    """
    store, tiles = config.paths.pixels(cohort, part), config.paths.tiles(cohort, part)
    if not store.exists():
        return None
    is_streamed = config.cohorts[cohort].pixels == "stream"
    return None if is_streamed and tiles.exists() and _time(store) < _time(tiles) else store


def why_not_stored(config: Config, cohort: str) -> str:
    """Return the key of the config by which tiles are not stored; empty if they are."""
    if config.cohorts[cohort].pixels == "stream":
        return f"cohorts.{cohort}.pixels: stream"
    return "" if config.slides.keep_pixels else "slides.keep_pixels: false"


def _time(path: Path) -> float:
    return path.stat().st_mtime
