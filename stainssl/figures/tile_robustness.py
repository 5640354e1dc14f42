"""Figure of encoders on a folder of tiles: re-stained tiles, and metrics of robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stainssl.evaluation.tile_table import TileColumn, found_columns
from stainssl.figures.benchmark import GREY, MARKERS, PALETTE, style_axes
from stainssl.figures.stain import draw_strip

ACROSS = 3  # panels
STRIP_INCH = 1.15  # height of a row of tiles


def tile_robustness(
    rows: Mapping[str, NDArray[np.uint8]],
    names: Sequence[str],
    figures: pd.DataFrame,
    floor: str,
) -> Figure:
    """Draw some tiles in every stain, and below them each metric with intervals by encoder.

    Args:
        rows: name of the row → (n, H, W, 3) uint8 RGB tiles.
        names: names of the n tiles.
        figures: `encoder` and the fields of `stainings.MetricRow`.
        floor: name of the baseline without a network, drawn in grey.
    """
    columns = found_columns(figures)
    encoders = figures["encoder"].unique().tolist()
    down = max(1, -(-len(columns) // ACROSS))
    heights = (STRIP_INCH * len(rows) + 0.4, down * (1.1 + 0.32 * len(encoders)))
    figure = Figure(figsize=(11, sum(heights)), dpi=110, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    draw_strip(halves[0], rows, names)
    panels = list(halves[1].subplots(down, ACROSS, squeeze=False, sharey=True).flat)
    colors = _colors(encoders, floor)
    for axes, column in zip(panels, columns, strict=False):
        _panel(axes, column, figures, encoders, colors)
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    return figure


def _colors(encoders: Sequence[str], floor: str) -> dict[str, str]:
    named = [name for name in encoders if name != floor]
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(named)} | {floor: GREY}


def _panel(
    axes: Axes,
    column: TileColumn,
    figures: pd.DataFrame,
    encoders: Sequence[str],
    colors: Mapping[str, str],
) -> None:
    found = figures[figures["metric"] == column.metric].set_index("encoder")
    for place, name in enumerate(encoders):
        if name in found.index:
            row = found.loc[name]
            axes.plot([row["low"], row["high"]], [place] * 2, color=colors[name], lw=1.8)
            mark = MARKERS[place % len(MARKERS)]
            axes.plot(row["value"], place, mark, color=colors[name], ms=7, mec="white")
    chance = column.chance
    if isinstance(chance, str):
        chance = float(figures.loc[figures["metric"] == chance, "value"].min())
    if chance is not None:
        axes.axvline(chance, color="#999999", lw=1, ls=(0, (4, 3)))
    axes.set_yticks(range(len(encoders)), encoders, fontsize=8.5)
    axes.set_ylim(len(encoders) - 0.5, -0.5)
    style_axes(axes)
    axes.set_title(column.title, fontsize=10)
