"""Table of the robustness metrics of `stainssl robustness`: columns and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stainssl.evaluation.grid import format_interval
from stainssl.evaluation.table import NOTHING
from stainssl.evaluation.table_formats import markdown


class TileColumn(NamedTuple):
    """A column of the table.

    Attributes:
        metric: name in `metrics.csv`.
        title: title of the column and of its panel in the figure.
        description: definition and interpretation in one line.
        chance: value of an uninformative encoder: a number, or the metric that has it.
    """

    metric: str
    title: str
    description: str
    chance: str | float | None = None


COLUMNS = (
    TileColumn(
        "stain_retrieval_top1", "same tile, other stain",
        "share of tiles that are nearest to themselves among all tiles re-stained; it falls with"
        " the number of tiles. Higher is more robust",
    ),
    TileColumn(
        "stain_margin", "stain margin",
        "cosine of a tile with itself under the other stain, minus that with other tiles. Higher is"
        " more robust",
    ),
    TileColumn(
        "tile_croma", "CRoMa, tile against stain",
        "by the package croma, with the tile as label and the stain as site: median margin between"
        " the same tile under the other stain and the nearest other tile under its own. Above 0 the"
        " tile dominates, below 0 the stain", 0.0,
    ),
    TileColumn(
        "tile_robustness_index", "robustness index, tile against stain",
        "PathoROB's index by the same package with the same labels: of the tiles whose nearest"
        " neighbor is either, the share that is nearest to itself", 0.5,
    ),
    TileColumn(
        "site_retrieval_top1", "same tissue, other site",
        "share of tiles that are nearest to the tile of the same name at another site, mean over"
        " pairs of sites. Higher is more robust",
    ),
    TileColumn("worst_pair_retrieval_top1", "worst pair", "the same for the lowest pair of sites"),
    TileColumn(
        "site_predictability", "site predictability",
        "balanced accuracy of a linear probe that predicts the site of held-out patients; sites may"
        " differ in tissue, too. Lower is more robust", "site_chance",
    ),
    TileColumn(
        "robustness_index", "robustness index",
        "PathoROB, by the package croma: whether the nearest tiles of other patients share the"
        " label (1) or the site (0)", 0.5,
    ),
    TileColumn(
        "croma", "CRoMa",
        "by the package croma: median margin between labels and sites. Above 0 the label dominates,"
        " below 0 the site", 0.0,
    ),
)  # fmt: skip


def found_columns(figures: pd.DataFrame) -> list[TileColumn]:
    """Columns whose metric has a value."""
    known = set(figures.loc[np.isfinite(figures["value"]), "metric"])
    return [column for column in COLUMNS if column.metric in known]


def to_markdown(figures: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    """Write a Markdown page: table with a row per encoder, definitions of the columns, and notes.

    Args:
        figures: `encoder` and the fields of `MetricRow`.
        title: title of the page.
        notes: one line each.
    """
    columns = found_columns(figures)
    head = ["encoder", *(column.title for column in columns)]
    lines = [f"# {title}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name in figures["encoder"].unique():
        rows = figures[figures["encoder"] == name].drop_duplicates("metric").set_index("metric")
        cells = [_cell(rows, column) for column in columns]
        lines.append("| " + " | ".join([markdown(name), *cells]) + " |")
    descriptions = [f"- **{column.title}**: {column.description}." for column in columns]
    return (
        "\n".join([*lines, "", *descriptions, "", *(f"- {markdown(note)}" for note in notes)])
        + "\n"
    )


def _cell(rows: pd.DataFrame, column: TileColumn) -> str:
    if column.metric not in rows.index:
        return NOTHING
    row = rows.loc[column.metric]
    text = format_interval(row["value"], row["low"], row["high"], between=" to ")
    if isinstance(column.chance, str):
        text += f", chance {rows.loc[column.chance, 'value']:.2f}"
    if row["group"] != "all":
        text += f": {markdown(row['group'].removeprefix('sites='))}"
    return text
