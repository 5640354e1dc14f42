"""Predictions on AMi-Br as one file in the repository.

With it, later encoders can be compared with earlier ones without training these again. The file has
one row per tile, indexed by `slide_id`, and two columns per run: `NAME`, the probability of
`atypical` with the tile's site left out, and `NAME threshold`. Tiles, labels, cases and sites are
in the release only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stainssl.evaluation.predictions import THRESHOLD
from stainssl.stores.atomic import replacing

DESCRIBED = "described"  # metadata key for the descriptions of runs
Runs = Mapping[str, Mapping[str, pd.DataFrame]]


def read(path: Path, sheet: pd.DataFrame, label: str) -> tuple[Runs, dict[str, Any]]:
    """Read run → site → predictions, and run → description.

    Args:
        path: the file; if it does not exist, both are empty.
        sheet: sheet of the release with `slide_id`, `patient_id`, `site` and the label.
        label: column of the label.
    """
    if not path.exists():
        return {}, {}
    found = pd.read_parquet(path)
    described = found.attrs[DESCRIBED]
    tiles = sheet[["slide_id", "patient_id", "site"]].assign(tile=0, y=sheet[label])
    tiles = tiles.set_index("slide_id", drop=False).loc[found.index]
    return {name: _by_site(tiles, found, name) for name in described}, described


def _by_site(tiles: pd.DataFrame, found: pd.DataFrame, name: str) -> dict[str, pd.DataFrame]:
    p = found[name].astype(float)
    rows = tiles.assign(p_0=1 - p, p_1=p, **{THRESHOLD: found[_threshold(name)].astype(float)})
    rows = rows[p.notna()].reset_index(drop=True)
    return {str(site): of_site for site, of_site in rows.groupby("site")}


def _threshold(name: str) -> str:
    return f"{name} {THRESHOLD}"


def write(path: Path, runs: Runs, described: Mapping[str, Any]) -> None:
    """Write runs to one file, with their descriptions; other descriptions are left out."""
    columns = {}
    for name in sorted(runs):
        rows = pd.concat(list(runs[name].values())).set_index("slide_id")
        columns[name] = rows["p_1"].astype(np.float32)
        columns[_threshold(name)] = rows[THRESHOLD].astype(np.float32)
    made = pd.DataFrame(columns).rename_axis("slide_id").sort_index()
    made.attrs[DESCRIBED] = {name: described[name] for name in sorted(runs)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        made.to_parquet(temporary, compression="zstd")
