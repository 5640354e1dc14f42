"""`stainssl label`: label the tiles of a part from annotations, or from the sheet of patches."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from stainssl.config import Outlines
from stainssl.errors import StainsslError
from stainssl.evaluation.folds import class_name
from stainssl.plan.slides import LabelJob
from stainssl.slides.annotation_files import Annotations, Areas, read_annotations
from stainssl.slides.annotations import MIN_SHARE, area_of, near_classes, tile_fractions
from stainssl.slides.frames import in_slide, origin_of
from stainssl.stores.tiles import Bounds, read_bounds, read_tiles, write_labels

log = logging.getLogger(__name__)


def from_sheet(values: pd.Series) -> pd.Series:
    """Convert a column of the sheet to labels.

    Args:
        values: str, empty if unknown.

    Returns:
        The same rows: float32 with NaN for unknown if all known values are numbers, otherwise
        class names with None for unknown.
    """
    known = values.replace("", None)
    numbers = pd.to_numeric(known, errors="coerce")
    if numbers.notna().equals(known.notna()):
        return numbers.astype(np.float32)
    return known.astype(object).where(known.notna(), None)


def from_polygons(tiles: pd.DataFrame, areas: Areas, outlines: Outlines) -> np.ndarray:
    """(n,) float32: 1 if at least half of the tile is covered by the outlines' classes, else 0."""
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
    """Label of the tiles of a slide without annotations: 0 if the sheet has a 0, else NaN."""
    return 0.0 if class_name(row.get(name, "")) == "0" else float("nan")


def _annotated(
    job: LabelJob, tiles: pd.DataFrame, row: dict[str, str], bounds: Bounds
) -> pd.DataFrame:
    """Labels of the tiles of one slide; NaN, not 0, if the annotations do not decide."""
    out = tiles[["slide_id", "tile"]].copy()
    path = job.annotation_files.get(row["slide_id"])
    drawn = _read(path, row["slide_id"]) if path is not None else None
    for name in job.names:
        if path is None:
            out[name] = np.full(len(tiles), _without_outlines(row, name), np.float32)
        elif drawn is None or _is_doubtful(job, drawn, row["slide_id"], name):
            out[name] = np.full(len(tiles), np.nan, np.float32)
        else:
            areas = in_slide(drawn.areas, origin_of(path, job.annotations_frame, bounds))
            out[name] = from_polygons(tiles, areas, job.outlines[name])
    if drawn is not None:
        counts = ", ".join(f"{name} {int((out[name] == 1).sum())}" for name in job.names)
        log.info(
            "%s: of %d tiles, %s; classes found: %s",
            row["slide_id"], len(out), counts or "none labeled", drawn.summary(),
        )  # fmt: skip
    return out


def _read(path: Path, slide_id: str) -> Annotations | None:
    """Read the annotations of one slide; None, with a warning, if they cannot be read."""
    try:
        return read_annotations(path)
    except StainsslError as error:
        log.warning("%s: its tiles have no label: %s", slide_id, error)
        return None


def _is_doubtful(job: LabelJob, drawn: Annotations, slide_id: str, name: str) -> bool:
    """Whether a class not named in the config resembles the classes of a label; warns if so."""
    of = job.outlines[name].of
    near = near_classes(drawn.classes(), of, job.known_classes)
    if near:
        log.warning(
            "%s: its %r is unknown: it has areas of class %s, which may mean %s: list it in"
            " the cohort's outlines (of, or ignore)",
            slide_id, name, ", ".join(map(repr, near)), ", ".join(map(repr, of)),
        )  # fmt: skip
    return bool(near)


def _label_slides(job: LabelJob, tiles: pd.DataFrame) -> pd.DataFrame:
    none, bounds = dict.fromkeys(job.names, np.float32(0)), read_bounds(job.qc)
    frames = [tiles.head(0)[["slide_id", "tile"]].assign(**none)]
    for row in job.rows.to_dict("records"):
        mine = tiles[tiles["slide_id"] == row["slide_id"]]
        words = {str(k): v for k, v in row.items()}
        frames.append(_annotated(job, mine, words, bounds[row["slide_id"]]))
    unknown = [s for s in job.rows["slide_id"] if s not in job.annotation_files]
    if unknown and job.names:
        log.info("%d slides without annotations: %s", len(unknown), ", ".join(unknown[:5]))
    found = pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)
    return found.astype(dict.fromkeys(job.names, np.float32))


def run(job: LabelJob) -> None:
    """Write the labels of the kept tiles of a part, in the order of its tiles.

    For slides, a label is a class of the annotations (or several, as defined by the cohort's
    `outlines`): 1 if it covers at least half of the tile, otherwise 0. On a slide without an
    annotation file the label is unknown (NaN), unless the sheet has a 0 in a column of that name,
    meaning that the class does not occur on the slide. It is also unknown if the file cannot be
    read, or has an unknown class whose name resembles that of the label. For patches, the label is
    the sheet's column of that name.

    Raises:
        StainsslError: the tiles are missing, or the sheet of patches has no column for a label.
    """
    tiles = read_tiles(job.tiles)
    kept = tiles[tiles["kept"]].reset_index(drop=True)
    if job.kind == "patches":
        labels = _label_patches(kept, job.rows, job.names)
    else:
        labels = _label_slides(job, kept)
    labels["tile"] = labels["tile"].astype(np.int32)
    settings = {"labels": job.names, "annotations": job.annotations, "least_share": MIN_SHARE}
    write_labels(job.labels, labels, settings)
    log.info("%d tiles, labels: %s", len(labels), ", ".join(job.names) or "none")
