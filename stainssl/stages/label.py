"""`stainssl label`: tiles and annotations (or a sheet of patches) of a part → tile labels."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from shapely.geometry.base import BaseGeometry

from stainssl.cohort import parts
from stainssl.config import Config
from stainssl.paths import Paths
from stainssl.slides.annotations import read_polygons, tile_fractions
from stainssl.status import StainsslError
from stainssl.stores.tiles import read_tiles, write_labels

log = logging.getLogger(__name__)

LEAST_SHARE = 0.5  # of a tile's area under a class before the tile has it


def label_names(config: Config, cohort: str) -> list[str]:
    """Labels of the tile tasks that use a cohort, each once, in the config's order."""
    tasks = [t for t in config.tasks.values() if t.level == "tile" and cohort in t.cohorts]
    return list(dict.fromkeys(task.label for task in tasks))


def from_sheet(values: pd.Series) -> pd.Series:
    """A sheet's column as labels: float32 with NaN for empty where all are numbers, else str.

    Args:
        values: str, empty where unknown.

    Returns:
        The same rows; a class's name stays, and None is unknown among names.
    """
    known = values.replace("", None)
    numbers = pd.to_numeric(known, errors="coerce")
    if numbers.notna().equals(known.notna()):
        return numbers.astype(np.float32)
    return known.astype(object).where(known.notna(), None)


def from_polygons(
    tiles: pd.DataFrame, polygons: list[tuple[str, BaseGeometry]], label: str
) -> np.ndarray:
    """(n,) float32: 1 where at least half of the tile is under the class `label`, else 0."""
    of_class = [polygon for name, polygon in polygons if name == label]
    x, y, side = (tiles[name].to_numpy() for name in ("x", "y", "side"))
    return (tile_fractions(x, y, side, of_class) >= LEAST_SHARE).astype(np.float32)


def _label_patches(tiles: pd.DataFrame, rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    by_slide = rows.set_index("slide_id")
    out = tiles[["slide_id", "tile"]].copy()
    for name in names:
        if name not in by_slide:
            raise StainsslError(
                f"The sheet has no column {name!r}, the label of a tile task: add it, or correct "
                "the task."
            )
        out[name] = out["slide_id"].map(from_sheet(by_slide[name]))
    return out


def _annotated(tiles: pd.DataFrame, path: Path | None, names: list[str]) -> pd.DataFrame:
    """The labels of one slide's tiles; unknown, never normal, where nobody annotated it."""
    out = tiles[["slide_id", "tile"]].copy()
    is_annotated = path is not None and path.exists()
    polygons = read_polygons(path) if path is not None and is_annotated else []
    for name in names:
        unknown = np.full(len(tiles), np.nan, np.float32)
        out[name] = from_polygons(tiles, polygons, name) if is_annotated else unknown
    return out


def _label_slides(
    tiles: pd.DataFrame, rows: pd.DataFrame, names: list[str], pattern: str | None
) -> pd.DataFrame:
    frames = [tiles.head(0)[["slide_id", "tile"]].assign(**dict.fromkeys(names, np.float32(0)))]
    unknown = []
    for slide_id in rows["slide_id"]:
        path = None if pattern is None else Path(pattern.format(slide_id=slide_id))
        unknown += [slide_id] if path is None or not path.exists() else []
        frames.append(_annotated(tiles[tiles["slide_id"] == slide_id], path, names))
    if unknown and names:
        shown = ", ".join(unknown[:5])
        log.info("%d slides without annotations, labels unknown: %s", len(unknown), shown)
    found = pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)
    return found.astype(dict.fromkeys(names, np.float32))


def run(config: Config, cohort: str, part: str) -> None:
    """Write the labels of the kept tiles of a part, in the order of its tiles.

    For slides, a label is a class of the annotations: 1 where at least half of the tile is under
    it, 0 elsewhere, unknown on a slide without an annotation file. For patches it is the sheet's
    column of that name.

    Raises:
        StainsslError: the tiles are missing, an annotation cannot be read, or the sheet lacks a
            label.
    """
    paths, found = Paths(config.results), config.cohorts[cohort]
    rows, names = parts(config, cohort)[part], label_names(config, cohort)
    tiles = read_tiles(paths.tiles(cohort, found.tiling, part))
    kept = tiles[tiles["kept"]].reset_index(drop=True)
    if found.kind == "patches":
        labels = _label_patches(kept, rows, names)
    else:
        labels = _label_slides(kept, rows, names, found.annotations)
    labels["tile"] = labels["tile"].astype(np.int32)
    settings = {"labels": names, "annotations": found.annotations, "least_share": LEAST_SHARE}
    write_labels(paths.labels(cohort, found.tiling, part), labels, settings)
    log.info("%d tiles, labels: %s", len(labels), ", ".join(names) or "none")
