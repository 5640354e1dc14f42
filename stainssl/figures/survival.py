"""Kaplan-Meier curves of patients with low and high predicted risk."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import CensoredData, ecdf

from stainssl.evaluation.risk_groups import RiskGroups
from stainssl.figures.benchmark import style_axes

ACROSS = 3  # panels
COLORS = {"low": "#0072B2", "high": "#D55E00"}  # Okabe & Ito 2008
TICKS = 6  # approximate number of times with numbers at risk
_INCH = 100  # px


def survival_figure(panels: Mapping[str, RiskGroups]) -> Figure | str:
    """Draw survival of both risk groups with 95 % bands and numbers at risk, a panel per model.

    Args:
        panels: title → risk groups of a model's predictions.
    """
    if not panels:
        return "No survival curve: no task is of kind survival."
    across = min(len(panels), ACROSS)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.6 * across, 5.0 * down), dpi=_INCH, layout="constrained")
    axes = figure.subplots(
        2 * down, across, squeeze=False, gridspec_kw={"height_ratios": [5, 1] * down}
    )
    places = [(row, column) for row in range(down) for column in range(across)]
    for (row, column), (title, groups) in zip(places, panels.items(), strict=False):
        _panel(axes[2 * row, column], title, groups)
        _numbers(axes[2 * row + 1, column], groups)
    for row, column in places[len(panels) :]:
        axes[2 * row, column].set_visible(False)
        axes[2 * row + 1, column].set_visible(False)
    return figure


def _ticks(groups: RiskGroups) -> NDArray[np.float64]:
    ticks = np.asarray(MaxNLocator(TICKS).tick_values(0, groups.end), float)
    return ticks[(ticks >= 0) & (ticks <= groups.end)]


def _panel(axes: Axes, title: str, groups: RiskGroups) -> None:
    for name, color in COLORS.items():
        if len(groups.group(name)[0]):
            _curve(axes, groups, name, color)
    style_axes(axes)
    axes.set(ylim=(0, 1.03), xlim=_limits(groups), xticks=_ticks(groups), ylabel="survival")
    axes.set_xlabel(groups.unit)
    axes.set_title(title, fontsize=9.5)
    axes.legend(
        framealpha=0.85, edgecolor="none", fontsize=8.5, loc="upper right", title=groups.test(),
        title_fontsize=8.5,
    )  # fmt: skip


def _limits(groups: RiskGroups) -> tuple[float, float]:
    return -0.02 * groups.end, 1.02 * groups.end


def _curve(axes: Axes, groups: RiskGroups, name: str, color: str) -> None:
    time, event = groups.group(name)
    label = f"{name} risk: {int(event.sum())} events of {len(time)}"
    axes.step(*groups.survival(name), where="post", color=color, lw=1.8, label=label)
    curve = ecdf(CensoredData.right_censored(time, ~event)).sf
    axes.plot(time[~event], curve.evaluate(time[~event]), "|", color=color, ms=6)
    with warnings.catch_warnings():  # there are no limits where survival is 0 or 1
        warnings.simplefilter("ignore", RuntimeWarning)
        band = curve.confidence_interval(method="log-log")
    low, high = (side.probabilities for side in (band.low, band.high))
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    if not len(known):
        return
    rows = np.r_[known, known[-1]]  # a step lasts until the next
    ends = np.r_[curve.quantiles, time.max()]
    at = np.r_[curve.quantiles[known], ends[known[-1] + 1]]
    axes.fill_between(at, low[rows], high[rows], step="post", color=color, alpha=0.13, lw=0)


def _numbers(axes: Axes, groups: RiskGroups) -> None:
    ticks = _ticks(groups)
    for row, (name, color) in enumerate(COLORS.items()):
        for tick, count in zip(ticks, groups.at_risk(name, ticks), strict=True):
            axes.text(tick, -row, str(count), ha="center", va="center", color=color, fontsize=8.5)
    axes.set(xlim=_limits(groups), ylim=(-1.6, 0.6), xticks=[])
    axes.set_yticks([0, -1], list(COLORS), fontsize=8.5)
    axes.tick_params(axis="y", pad=12)
    axes.set_title("at risk", fontsize=8.5, loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
