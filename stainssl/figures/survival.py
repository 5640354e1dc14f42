"""Kaplan and Meier's curves of the groups of low and high predicted risk."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import CensoredData, ecdf, logrank

from stainssl.figures.benchmark import message, quiet

ACROSS = 3  # panels
COLORS = {"low": "#0072B2", "high": "#D55E00"}  # Okabe & Ito 2008
TICKS = 6  # times at which numbers at risk stand, about
_INCH = 100  # px


@dataclass(frozen=True)
class RiskGroups:
    """The units of one answer and their groups.

    Attributes:
        time: (n,) of the event or of censoring.
        event: (n,) whether it is the event.
        is_high: (n,) whether the unit is of the group of high risk.
        unit: how the axis of time is named.
        is_crossed: whether some of the units trained the models of others: then the log-rank test,
            which takes them for independent, gives too small a p-value.
    """

    time: NDArray[np.float64]
    event: NDArray[np.bool_]
    is_high: NDArray[np.bool_]
    unit: str
    is_crossed: bool = False

    def group(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Times and events of `low` or `high`."""
        mine = self.is_high == (name == "high")
        return self.time[mine], self.event[mine]

    def p_value(self) -> float:
        """Of the log-rank test; NaN where a group is empty or nobody has the event."""
        sides = [self.group(name) for name in COLORS]
        if not self.event.any() or not all(len(time) for time, _ in sides):
            return float("nan")
        low, high = (CensoredData.right_censored(time, ~event) for time, event in sides)
        return float(logrank(low, high).pvalue)

    def at_risk(self, name: str, times: NDArray[np.float64]) -> list[int]:
        """How many of a group are followed up to each time."""
        own = self.group(name)[0]
        return [int((own >= time).sum()) for time in times]


def survival_figure(panels: Mapping[str, RiskGroups]) -> Figure:
    """Survival of both groups with 95 % bands, numbers at risk below, a panel an answer.

    Args:
        panels: title → the groups of an answer.
    """
    if not panels:
        return message("No survival curve: no task is of kind survival.")
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
    end = max(float(groups.time.max()), 1e-9)
    ticks = np.asarray(MaxNLocator(TICKS).tick_values(0, end), float)
    return ticks[(ticks >= 0) & (ticks <= end)]


def _panel(axes: Axes, title: str, groups: RiskGroups) -> None:
    for name, color in COLORS.items():
        time, event = groups.group(name)
        if len(time):
            _curve(
                axes, time, event, color, f"{name} risk: {int(event.sum())} events of {len(time)}"
            )
    quiet(axes)
    axes.set(ylim=(0, 1.03), xlim=_limits(groups), xticks=_ticks(groups), ylabel="survival")
    axes.set_xlabel(groups.unit)
    axes.set_title(title, fontsize=9.5)
    axes.legend(
        framealpha=0.85, edgecolor="none", fontsize=8.5, loc="upper right", title=_test(groups),
        title_fontsize=8.5,
    )  # fmt: skip


def _test(groups: RiskGroups) -> str:
    p = groups.p_value()
    if np.isnan(p):
        return "log-rank test: undefined"
    return f"log-rank p = {p:.2g}" + (" (crossed folds: too small)" if groups.is_crossed else "")


def _limits(groups: RiskGroups) -> tuple[float, float]:
    end = max(float(groups.time.max()), 1e-9)
    return -0.02 * end, 1.02 * end


def _curve(
    axes: Axes, time: NDArray[np.float64], event: NDArray[np.bool_], color: str, label: str
) -> None:
    curve = ecdf(CensoredData.right_censored(time, ~event)).sf
    at = np.r_[0.0, curve.quantiles, time.max()]
    said = np.r_[1.0, curve.probabilities, curve.probabilities[-1:]]
    axes.step(at, said, where="post", color=color, lw=1.8, label=label)
    axes.plot(time[~event], curve.evaluate(time[~event]), "|", color=color, ms=6)
    with warnings.catch_warnings():  # where survival is 0 or 1 there are no limits
        warnings.simplefilter("ignore", RuntimeWarning)
        band = curve.confidence_interval(method="log-log")
    low, high = (side.probabilities for side in (band.low, band.high))
    known = np.isfinite(low) & np.isfinite(high)
    quantiles = curve.quantiles[known]
    axes.fill_between(
        quantiles, low[known], high[known], step="post", color=color, alpha=0.13, lw=0
    )


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
