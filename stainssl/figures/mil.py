"""Figures of attention: its map on a slide, and the tiles with the highest and lowest values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Purple to yellow, perceptually uniform, readable by color-blind readers.
COLORS = colormaps["plasma"]
OPACITY = 0.55  # the tissue stays visible under the tiles
DPI = 100


def attention_overlay(
    thumbnail: np.ndarray,
    x_thumbnail_px: np.ndarray,
    y_thumbnail_px: np.ndarray,
    side_thumbnail_px: float,
    attention: np.ndarray,
    title: str,
) -> Figure:
    """Draw a slide, and beside it the same with tiles colored by attention.

    Args:
        thumbnail: (H, W, 3) uint8 RGB.
        x_thumbnail_px: (n,) left edges of the tiles in thumbnail px.
        y_thumbnail_px: (n,) top edges, likewise.
        side_thumbnail_px: side of a tile, likewise.
        attention: (n,) percentile rank of each tile within its slide, in (0, 1].
        title: names of slide, task and head.

    Returns:
        A figure 9 inches wide.
    """
    height, width = thumbnail.shape[:2]
    figure = Figure(figsize=(9, 4.2 * height / width + 1.1), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.imshow(thumbnail)
        axes.set_axis_off()
    squares = PatchCollection(
        [
            Rectangle((x - 0.5, y - 0.5), side_thumbnail_px, side_thumbnail_px)
            for x, y in zip(x_thumbnail_px, y_thumbnail_px, strict=True)
        ],
        cmap=COLORS,
        alpha=OPACITY,
        linewidth=0,
    )
    squares.set_array(np.asarray(attention, float))
    squares.set_clim(0, 1)
    right.add_collection(squares)
    left.set_title("slide", fontsize=10)
    right.set_title(f"attention of {len(attention)} tiles", fontsize=10)
    bar = figure.colorbar(squares, ax=[left, right], location="bottom", shrink=0.5, aspect=40)
    bar.set_label("percentile rank of a tile's attention within the slide")
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    figure.suptitle(title)
    return figure


def tile_strip(
    top: np.ndarray,
    top_attention: Sequence[float],
    bottom: np.ndarray,
    bottom_attention: Sequence[float],
    title: str,
) -> Figure:
    """Draw two rows of tiles: the highest attention above the lowest.

    Args:
        top: (k, H, W, 3) uint8 RGB, highest first.
        top_attention: k percentile ranks in (0, 1].
        bottom: (m, H, W, 3) uint8 RGB, lowest first.
        bottom_attention: m percentile ranks in (0, 1].
        title: names of slide or patient, task and head.

    Returns:
        A figure 9 inches wide.
    """
    columns = max(len(top), len(bottom))
    figure = Figure(figsize=(9, 2 * (9 / columns + 0.25) + 0.6), dpi=DPI, layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    rows = (("highest", top, top_attention), ("lowest", bottom, bottom_attention))
    for line, (name, tiles, attention) in zip(grid, rows, strict=True):
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes, tile, rank in zip(line, tiles, attention, strict=False):
            axes.imshow(tile)
            axes.set_xlabel(f"{rank:.2f}", fontsize=9)
            axes.spines[:].set(visible=True, color=COLORS(rank), linewidth=3)
        line[0].set_ylabel(f"{name} attention", fontsize=10)
    figure.suptitle(f"{title}: tiles by percentile rank of attention", fontsize=11)
    return figure
