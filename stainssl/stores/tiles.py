"""Tables of a part: tiles, status of each slide (qc), and labels of the tiles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from stainssl.errors import StainsslError
from stainssl.stores.tables import read_table, write_table

Bounds = tuple[int, int, int, int]
"""x, y, width, height of the scanned area, in level-0 px."""

TILE_COLUMNS = {
    "slide_id": "str",
    "tile": "int32",
    "x": "int64",  # level-0 px, top left
    "y": "int64",
    "side": "float64",  # level-0 px, not always an integer
    "tissue": "float32",  # share of the tile's area
    "sharpness": "float32",
    "pen": "float32",  # share of the tile's area
    "saturation": "float32",
    "od": "float32",  # mean optical density
    "kept": "bool",
    "reason": "str",  # why the tile was not kept; empty if it was
}


def write_tiles(path: Path, frame: pd.DataFrame, settings: Mapping[str, Any]) -> None:
    """Write the tiles of a part; columns and types as in `TILE_COLUMNS`."""
    write_table(path, frame[list(TILE_COLUMNS)].astype(TILE_COLUMNS), "tiles", settings)


def read_tiles(path: Path) -> pd.DataFrame:
    """Read the tiles of a part: a row per tile that has any tissue, kept or not."""
    return read_table(path, "tiles")


def write_qc(path: Path, frame: pd.DataFrame, settings: Mapping[str, Any]) -> None:
    """Write the status of the slides of a part: a row per slide, with `status` and `detail`."""
    write_table(path, frame, "qc", settings)


def read_qc(path: Path) -> pd.DataFrame:
    """Read the status of the slides of a part."""
    return read_table(path, "qc")


def read_bounds(path: Path) -> dict[str, Bounds]:
    """Read the scanned bounds of each slide from the `qc` table; zeros if it was not opened.

    Raises:
        StainsslError: as `read_table`, or the table was written by an older version.
    """
    qc = read_qc(path)
    if "bounds" not in qc:
        raise StainsslError(f"{path} was written by an older version: delete it and tile again.")
    bounds = {}
    for slide, text in zip(qc["slide_id"], qc["bounds"], strict=True):
        x, y, width, height = json.loads(text)
        bounds[str(slide)] = (x, y, width, height)
    return bounds


def write_labels(path: Path, frame: pd.DataFrame, settings: Mapping[str, Any]) -> None:
    """Write the labels of the kept tiles of a part: `slide_id`, `tile`, and a column per label."""
    write_table(path, frame, "labels", settings)


def read_labels(path: Path) -> pd.DataFrame:
    """Read the labels of the kept tiles of a part; an unknown label is NaN."""
    return read_table(path, "labels")
