"""Figures of pretraining: curves, and views as seen by the network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Okabe & Ito 2008: distinguishable by color-blind readers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DPI = 110


def curves(metrics: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw loss, effective rank, and alignment against uniformity, a line per encoder.

    Args:
        metrics: encoder → rows with `epoch`, `step`, `loss`, `effective_rank`, `alignment`,
            `uniformity`; an encoder without rows (not trained) has no line.
    """
    figure = Figure(figsize=(11, 3.6), dpi=DPI, layout="constrained")
    loss, rank, plane = figure.subplots(1, 3)
    drawn = {name: rows for name, rows in metrics.items() if len(rows)}
    is_short = all(rows["epoch"].max() <= 1 for rows in drawn.values())
    unit = "step" if is_short else "epoch"
    for number, (name, rows) in enumerate(drawn.items()):
        style = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)],
                 "ms": 4, "label": name}  # fmt: skip
        trained, watched = rows[rows["loss"].notna()], rows[rows["effective_rank"].notna()]
        loss.plot(trained[unit], trained["loss"], **style)
        rank.plot(watched[unit], watched["effective_rank"], **style)
        _path(plane, watched, style)
    _label(loss, "Contrastive loss, mean between points", unit, "NT-Xent (nats)")
    _label(rank, "Effective rank (1: collapsed)", unit, "effective rank of 256 tiles")
    title = "Alignment and uniformity (ring: untrained)"
    _label(plane, title, "alignment: distance² of two views", "uniformity: log mean potential")
    rank.set_ylim(bottom=0)
    if not drawn:
        figure.suptitle("Random weights: not trained")
    elif len(drawn) > 1:
        loss.legend(frameon=False)
    else:
        figure.suptitle(next(iter(drawn)))
    return figure


def _path(plane: Axes, rows: pd.DataFrame, style: dict[str, object]) -> None:
    plane.plot(rows["alignment"], rows["uniformity"], **style)  # type: ignore[arg-type]
    first = rows.iloc[0]
    plane.plot(
        first["alignment"], first["uniformity"], "o", ms=11, mfc="none", color=style["color"]
    )


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def views(
    tiles: Tensor, methods: Mapping[str, tuple[Tensor, Tensor]], *, columns: int = 8
) -> Figure:
    """Draw tiles, and below them the two views of each method as seen by the network.

    Args:
        tiles: (B, 3, H, W) uint8 RGB.
        methods: method → two views (B, 3, S, S) in [0, 1], before standardization.
        columns: number of tiles shown.
    """
    columns = min(columns, len(tiles))
    rows = {"tile": tiles.float() / 255}
    for name, (first, second) in methods.items():
        rows |= {f"{name}\nview 1": first, f"{name}\nview 2": second}
    figure = Figure(figsize=(1.2 + columns, 1.02 * len(rows)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(axes_row, images[:columns], strict=True):
            axes.imshow(np.clip(image.permute(1, 2, 0).cpu().numpy(), 0, 1))
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure
