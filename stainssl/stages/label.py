"""`stainssl label`: tiles and annotations (or a sheet of patches) of a part → tile labels."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from stainssl.cohort import parts
from stainssl.cohort.outlines import file_of_slide, known_classes, label_names, outlines_of
from stainssl.config import Cohort, Config, Outlines
from stainssl.errors import StainsslError
from stainssl.evaluation.folds import class_name
from stainssl.plan.paths import Paths
from stainssl.slides.annotation_files import Annotations, Areas, read_annotations
from stainssl.slides.annotations import MIN_SHARE, area_of, near_classes, tile_fractions
from stainssl.stores.tiles import read_tiles, write_labels

log = logging.getLogger(__name__)


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


def from_polygons(tiles: pd.DataFrame, areas: Areas, outlines: Outlines) -> np.ndarray:
    """(n,) float32: 1 where at least half of the tile is under the outlines' classes, else 0."""
    x, y, side = (tiles[name].to_numpy() for name in ("x", "y", "side"))
    polygons = area_of(areas, outlines.of, outlines.without)
    return (tile_fractions(x, y, side, polygons) >= MIN_SHARE).astype(np.float32)


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


def _without_outlines(row: dict[str, str], name: str) -> float:
    """The label of every tile of a slide that nobody outlined: 0 where the sheet says so."""
    return 0.0 if class_name(row.get(name, "")) == "0" else float("nan")


def _annotated(
    tiles: pd.DataFrame, row: dict[str, str], names: list[str], cohort: Cohort
) -> pd.DataFrame:
    """The labels of one slide's tiles; unknown, never normal, where nobody can say."""
    out = tiles[["slide_id", "tile"]].copy()
    path = file_of_slide(cohort.annotations, row["slide_id"])
    drawn = _read(path, row["slide_id"]) if path is not None else None
    for name in names:
        if path is None:
            out[name] = np.full(len(tiles), _without_outlines(row, name), np.float32)
        elif drawn is None or _is_doubtful(drawn, row["slide_id"], name, names, cohort):
            out[name] = np.full(len(tiles), np.nan, np.float32)
        else:
            out[name] = from_polygons(tiles, drawn.areas, outlines_of(cohort, name))
    if drawn is not None:
        counts = ", ".join(f"{name} {int((out[name] == 1).sum())}" for name in names)
        log.info(
            "%s: of %d tiles are %s; classes found: %s",
            row["slide_id"], len(out), counts or "none labeled", drawn.told(),
        )  # fmt: skip
    return out


def _read(path: Path, slide_id: str) -> Annotations | None:
    """The annotations of one slide; None, and a warning, where they cannot be read."""
    try:
        return read_annotations(path)
    except StainsslError as error:
        log.warning("%s: its tiles are unknown: %s", slide_id, error)
        return None


def _is_doubtful(
    drawn: Annotations, slide_id: str, name: str, names: list[str], cohort: Cohort
) -> bool:
    """Whether a class that stands there may be meant by a label, and the config does not say."""
    of = outlines_of(cohort, name).of
    near = near_classes(drawn.classes(), of, known_classes(cohort, names))
    if near:
        log.warning(
            "%s: its %r is unknown: it has areas of class %s, which may be meant by %s: say so in"
            " the cohort's outlines (of, or ignore)",
            slide_id, name, ", ".join(map(repr, near)), ", ".join(map(repr, of)),
        )  # fmt: skip
    return bool(near)


def _label_slides(
    tiles: pd.DataFrame, rows: pd.DataFrame, names: list[str], cohort: Cohort
) -> pd.DataFrame:
    frames = [tiles.head(0)[["slide_id", "tile"]].assign(**dict.fromkeys(names, np.float32(0)))]
    for row in rows.to_dict("records"):
        mine = tiles[tiles["slide_id"] == row["slide_id"]]
        frames.append(_annotated(mine, {str(k): v for k, v in row.items()}, names, cohort))
    unknown = [s for s in rows["slide_id"] if file_of_slide(cohort.annotations, s) is None]
    if unknown and names:
        log.info("%d slides without annotations: %s", len(unknown), ", ".join(unknown[:5]))
    found = pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)
    return found.astype(dict.fromkeys(names, np.float32))


def run(config: Config, cohort: str, part: str) -> None:
    """Write the labels of the kept tiles of a part, in the order of its tiles.

    For slides, a label is a class of the annotations: 1 where at least half of the tile is under
    it, 0 elsewhere (the cohort's `outlines` say where several classes make a label). On a slide
    without an annotation file it is unknown, unless the sheet has a column of that name with a 0:
    nothing of it is on the slide. It is unknown, too, where the file cannot be read, or has a class
    that reads like the label's. For patches it is the sheet's column of that name.

    Raises:
        StainsslError: the tiles are missing, or the sheet lacks a label.
    """
    paths, found = Paths(config.results), config.cohorts[cohort]
    rows, names = parts(config, cohort)[part], label_names(config, cohort)
    tiles = read_tiles(paths.tiles(cohort, found.tiling, part))
    kept = tiles[tiles["kept"]].reset_index(drop=True)
    if found.kind == "patches":
        labels = _label_patches(kept, rows, names)
    else:
        labels = _label_slides(kept, rows, names, found)
    labels["tile"] = labels["tile"].astype(np.int32)
    settings = {"labels": names, "annotations": found.annotations, "least_share": MIN_SHARE}
    write_labels(paths.labels(cohort, found.tiling, part), labels, settings)
    log.info("%d tiles, labels: %s", len(labels), ", ".join(names) or "none")
