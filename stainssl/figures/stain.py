"""Figures of stain: profiles by site in stain space, and tiles normalized to targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from stainssl.stain.profile import LabStats, StainProfile, TwoStain

# Okabe & Ito 2008: distinguishable by color-blind readers.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
STAR = {
    "marker": "*",
    "s": 130,
    "c": "black",
    "edgecolors": "white",
    "linewidths": 0.8,
    "zorder": 5,
}
MAX_POINTS = 2000  # per site; more would only cover each other


def chromaticity(vectors: np.ndarray) -> np.ndarray:
    """Return (N, 2) hue–saturation–density coordinates of (N, 3) OD vectors.

    Grey is (0, 0); the distance from it is saturation, the direction is hue. They are independent
    of stain strength (van der Laak et al. 2000).
    """
    mean = np.maximum(vectors.mean(-1, keepdims=True), 1e-6)
    red, green, blue = np.moveaxis(vectors / mean, -1, 0)
    return np.stack([red - 1, (green - blue) / np.sqrt(3)], -1)


def _draw_space(
    figure: Figure | SubFigure,
    sites: Mapping[str, StainProfile],
    targets: StainProfile | None,
    targets_name: str,
) -> None:
    """Draw profiles by site, and targets as stars, which are small if there are many."""
    left, right = figure.subplots(1, 2)
    for i, (name, profile) in enumerate(sites.items()):
        style: dict[str, Any] = {"c": PALETTE[i % 8], "marker": MARKERS[i % 8]}
        for axes, clouds in zip((left, right), _planes(profile), strict=True):
            _scatter(axes, clouds, f"{name} ({len(profile)} tiles)", style)
    if targets is not None:
        star = STAR if len(targets) <= 30 else {**STAR, "s": 28, "linewidths": 0.2}
        name = f"{targets_name} ({len(targets)})"
        for axes, clouds in zip((left, right), _planes(targets), strict=True):
            for j, points in enumerate(clouds):
                axes.scatter(points[:, 0], points[:, 1], label=None if j else name, **star)
    family = next((type(profile) for profile in sites.values()), TwoStain)
    _label_space(left, right, family)
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=8, markerscale=1.6)


def _planes(profile: StainProfile) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Point clouds of the left and the right panel, each (N, 2)."""
    arrays = profile.batched().to_arrays()
    if isinstance(profile, TwoStain):
        matrix = arrays["matrix"]
        return [chromaticity(matrix[:, 0]), chromaticity(matrix[:, 1])], [arrays["scale"]]
    mean, std = arrays["mean"], arrays["std"]
    return [mean[:, 1:]], [np.stack([mean[:, 0], std[:, 0]], -1)]


def _scatter(axes: Axes, clouds: list[np.ndarray], label: str, style: dict[str, Any]) -> None:
    for j, points in enumerate(clouds):
        thin = points[:: max(1, len(points) // MAX_POINTS)]
        size, alpha = (9, 0.45) if len(thin) > 100 else (24, 0.85)
        look = {"s": size, "alpha": alpha, "marker": style["marker"], "edgecolors": style["c"]}
        look |= {"facecolors": style["c"] if j == 0 else "none", "linewidths": 0.8 * (j > 0)}
        axes.scatter(thin[:, 0], thin[:, 1], label=None if j else label, **look)


def _label_space(left: Axes, right: Axes, family: type[StainProfile]) -> None:
    if family is LabStats:
        left.set(title="Mean color of the tissue", xlabel="a (LAB units)", ylabel="b (LAB units)")
        right.set(
            title="Lightness of the tissue",
            xlabel="mean L (LAB units)",
            ylabel="standard deviation of L (LAB units)",
        )
        return
    left.set(
        title="Stain vectors: hematoxylin filled, eosin hollow",
        xlabel="HSD cx: more red absorbed →",
        ylabel="HSD cy: more green than blue absorbed →",
    )
    right.set(
        title="Stain strength (99th percentile)",
        xlabel="hematoxylin (optical density)",
        ylabel="eosin (optical density)",
    )


def draw_strip(
    figure: Figure | SubFigure, rows: Mapping[str, np.ndarray], names: Sequence[str]
) -> None:
    """Draw rows of tiles.

    Args:
        figure: figure to draw on.
        rows: name of the row → (n, H, W, 3) uint8 RGB tiles.
        names: names of the n tiles, above the columns.
    """
    axes = figure.subplots()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, top=False, labeltop=True, labelbottom=False)
    axes.set(xticks=[], yticks=[])
    if not names:
        axes.set_title("no valid tile to show", fontsize=9)
        return
    montage, x_px, y_px = _montage(list(rows.values()))
    axes.imshow(montage)
    axes.set_xticks(x_px, names)
    axes.set_yticks(y_px, list(rows))


def _montage(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image of rows of tiles with white gaps, and the centres of its columns and rows."""
    gap = max(2, rows[0].shape[1] // 16)
    tiles = np.stack(rows)
    padded = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    n_rows, n_columns, height, width, _ = padded.shape
    picture = padded.swapaxes(1, 2).reshape(n_rows * height, n_columns * width, 3)
    x_px = np.arange(n_columns) * width + (width - gap) / 2
    y_px = np.arange(n_rows) * height + (height - gap) / 2
    return picture, x_px, y_px


def target_figure(
    sites: Mapping[str, StainProfile],
    targets: StainProfile | None,
    strip: tuple[np.ndarray, Sequence[str], Mapping[str, np.ndarray]],
    title: str,
    targets_name: str = "target",
) -> Figure:
    """Draw the stain space with the targets, above a strip of tiles normalized to them.

    Args:
        sites: site → profiles of its tiles.
        targets: profiles of the targets; None: none are drawn.
        strip: original tiles (n, H, W, 3) uint8 RGB, their names, and target → the tiles
            normalized to it.
        title: one line with the policy and its coverage.
        targets_name: name of the targets in the legend.
    """
    rows = len(strip[2]) + 1
    heights = (4.2, 1.25 * rows + 0.3)
    figure = Figure(figsize=(9, sum(heights)), dpi=100, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    figure.suptitle(title, fontsize=11)
    _draw_space(halves[0], sites, targets, targets_name)
    originals, names, normalized = strip
    draw_strip(halves[1], {"original": originals, **normalized}, names)
    return figure
