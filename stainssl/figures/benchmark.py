"""Figures of a benchmark: ROC and calibration curves, forest plots, robustness, UMAP.

If there is nothing to draw, a function returns a sentence with the reason instead of a figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from stainssl.evaluation.baselines import CLINICAL, FLOORS, SITE
from stainssl.evaluation.baselines import HEAD as COLUMNS_HEAD
from stainssl.evaluation.table import FEW_PATIENTS, people
from stainssl.evaluation.thresholds import calibration_curve, net_benefit

# Okabe & Ito 2008: distinguishable by color-blind readers. Grey is for baselines.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D1F", "#5D3A9B")
GREY = "#7F7F7F"
FAINT = "#C4C4C4"  # sites with few patients
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_INCH = 100  # px
TITLE_CHARACTERS = 46  # per line of a robustness panel's title


def encoder_colors(encoders: Sequence[str]) -> dict[str, str]:
    """Color of each encoder, the same in all figures; grey for `random` and baselines."""
    floor = {"random", SITE, CLINICAL, *FLOORS}
    named = [name for name in encoders if name not in floor]
    colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(named)}
    return colors | {name: GREY for name in encoders if name in floor}


def style_axes(axes: Axes) -> None:
    """Give axes a faint grid, and remove the top and right spines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def roc(
    curves: Mapping[str, Mapping[str, tuple[str, pd.DataFrame]]], encoders: Sequence[str]
) -> Figure | str:
    """Draw ROC curves with 95 % bands over patients, one panel per task.

    Args:
        curves: panel title → legend label → (encoder, rows of `roc.roc_band`).
        encoders: all encoders of the benchmark, in order, for their colors.
    """
    if not curves:
        return "No ROC curve: no task has two classes among its test patients."
    across = min(len(curves), 3)
    down = -(-len(curves) // across)
    figure = Figure(figsize=(4.8 * across, 5.0 * down), dpi=_INCH, layout="constrained")
    colors = encoder_colors(encoders)
    panels = figure.subplots(down, across, squeeze=False).flat
    for axes, (title, lines) in zip(panels, curves.items(), strict=False):
        _roc_panel(axes, title, lines, colors)
    for axes in list(panels):
        axes.set_visible(False)
    return figure


def _roc_panel(
    axes: Axes, title: str, lines: Mapping[str, tuple[str, pd.DataFrame]], colors: dict[str, str]
) -> None:
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    drawn: dict[str, int] = {}
    for label, (encoder, curve) in lines.items():
        style = LINES[drawn.setdefault(encoder, 0) % len(LINES)]
        drawn[encoder] += 1
        color = colors[encoder]
        axes.plot(curve["fpr"], curve["tpr"], color=color, linestyle=style, label=label, lw=1.8)
        axes.fill_between(curve["fpr"], curve["low"], curve["high"], color=color, alpha=0.13, lw=0)
    style_axes(axes)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=title)
    axes.set(xlabel="false positive rate", ylabel="true positive rate (95 % band over patients)")
    axes.legend(framealpha=0.85, edgecolor="none", fontsize=8.5, loc="lower right")


# Encoder, positive, probability.
BinaryPredictions = tuple[str, NDArray[np.bool_], NDArray[np.float64]]


def calibration(
    predictions: Mapping[str, Mapping[str, BinaryPredictions]], encoders: Sequence[str]
) -> Figure | str:
    """Draw calibration plots and decision curves, one row per task of two classes.

    Args:
        predictions: panel title → legend label → (encoder, (n,) positive, (n,) probability) of
            units.
        encoders: all encoders of the benchmark, in order, for their colors.
    """
    if not predictions:
        return "No calibration plot: no task has two classes among its test patients."
    figure = Figure(figsize=(13, 4.6 * len(predictions)), dpi=_INCH, layout="constrained")
    rows = figure.subplots(len(predictions), 2, squeeze=False)
    for (left, right), (title, lines) in zip(rows, predictions.items(), strict=True):
        _calibration_row(left, right, lines, encoder_colors(encoders))
        left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=title)
        left.set(xlabel="predicted probability", ylabel="observed share (fifths of units)")
        right.set(xlabel="threshold", ylabel="net benefit", title="decision curve")
        # Outside the axes, where it covers no curve.
        handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        right.legend(
            handles=handles, frameon=False, fontsize=8.5, loc="upper left",
            bbox_to_anchor=(1.02, 1.0),
        )  # fmt: skip
    return figure


def _calibration_row(
    left: Axes, right: Axes, lines: Mapping[str, BinaryPredictions], colors: dict[str, str]
) -> None:
    """Draw both panels of a task; colors are encoders, line styles and markers are models."""
    left.plot([0, 1], [0, 1], color="#bbbbbb", lw=1, ls=(0, (4, 3)), zorder=1)
    drawn: Counter[str] = Counter()
    for place, (label, (encoder, positive, p)) in enumerate(lines.items()):
        stated, true, _ = calibration_curve(positive, p)
        marker, color = MARKERS[place % len(MARKERS)], colors[encoder]
        style = LINES[drawn[encoder] % len(LINES)]
        drawn[encoder] += 1
        left.plot(stated, true, color=color, lw=1.4, ls=style, marker=marker, ms=5, label=label)
        benefit = net_benefit(positive, p, _THRESHOLDS)
        right.plot(_THRESHOLDS, benefit, color=color, lw=1.6, ls=style)
    _decision_floor(right, positive)
    style_axes(left)
    style_axes(right)


_THRESHOLDS = np.linspace(0.0, 0.95, 96)


def _decision_floor(axes: Axes, positive: NDArray[np.bool_]) -> None:
    everybody = net_benefit(positive, np.ones(len(positive)), _THRESHOLDS)
    axes.plot(_THRESHOLDS, everybody, color="#999999", lw=1, ls=":", label="all positive")
    axes.axhline(0, color="#999999", lw=1, ls=(0, (4, 3)), label="none positive")
    share = positive.mean()
    axes.set_ylim(-0.15 * max(share, 0.1), 1.1 * max(share, 0.1))


# Encoder, true, predicted.
NumericPredictions = tuple[str, NDArray[np.float64], NDArray[np.float64]]


def scatter(
    predictions: Mapping[str, Mapping[str, NumericPredictions]], encoders: Sequence[str]
) -> Figure | str:
    """Draw predicted against true numbers, rows of panels per task, one panel per model.

    Args:
        predictions: task → title → (encoder, (n,) true, (n,) predicted) of units.
        encoders: all encoders of the benchmark, in order, for their colors.
    """
    if not predictions:
        return "No scatter plot: no task has a number as label (kind: regression)."
    across = min(max(map(len, predictions.values())), _ACROSS)
    down = [-(-len(panels) // across) for panels in predictions.values()]
    figure = Figure(figsize=(3.9 * across, 4.3 * sum(down)), dpi=_INCH, layout="constrained")
    grid = iter(figure.subplots(sum(down), across, squeeze=False))
    colors = encoder_colors(encoders)
    for (task, panels), lines in zip(predictions.items(), down, strict=True):
        axes = [one for _ in range(lines) for one in next(grid)]
        every = np.concatenate([np.concatenate(units[1:]) for units in panels.values()])
        margin = 0.04 * max(float(np.ptp(every)), 1e-9)
        limits = (float(every.min()) - margin, float(every.max()) + margin)
        for panel, (title, units) in zip(axes, panels.items(), strict=False):
            _scatter_panel(panel, f"{task}: {title}", units, limits, colors)
        for panel in axes[len(panels) :]:
            panel.set_visible(False)
    return figure


def _scatter_panel(
    axes: Axes,
    title: str,
    units: NumericPredictions,
    limits: tuple[float, float],
    colors: dict[str, str],
) -> None:
    encoder, true, said = units
    axes.plot(limits, limits, color="#bbbbbb", lw=1, ls=(0, (4, 3)), zorder=1)
    axes.scatter(true, said, s=16, color=colors[encoder], alpha=0.65, lw=0)
    style_axes(axes)
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="true", ylabel="predicted")
    axes.set_title(title, fontsize=9.5)


def forest(long: pd.DataFrame, encoders: Sequence[str]) -> Figure | str:
    """Draw the main metric of every model with its interval, over all patients and by site.

    By the kind of the task, the metric is AUROC, Spearman's correlation, weighted kappa or
    Harrell's C. Sites with few patients are light grey.

    Args:
        long: rows of `table.long_table`.
        encoders: all encoders of the benchmark, in order, for their colors.
    """
    rows = long[long["metric"].isin(_FOREST) & (long["head"] != "")]
    rows = rows[np.isfinite(rows["value"])]
    if not len(rows):
        return "No AUROC: no task has two classes among its test patients."
    tasks = rows["task"].unique().tolist()
    sizes = [len(_entries(rows[rows["task"] == task])) + 1.2 for task in tasks]
    height = max(0.27 * sum(sizes) + 0.9 * len(tasks), 2.4)
    figure = Figure(figsize=(9, height), dpi=_INCH, layout="constrained")
    panels = figure.subplots(
        len(tasks), 1, sharex=rows["metric"].nunique() == 1, squeeze=False,
        gridspec_kw={"height_ratios": sizes},
    )[:, 0]  # fmt: skip
    colors = encoder_colors(encoders)
    last: dict[str, Axes] = {}
    for axes, task in zip(panels, tasks, strict=True):
        mine = rows[rows["task"] == task]
        _forest_panel(axes, task, mine, colors)
        last[mine["metric"].iloc[0]] = axes
    for metric, axes in last.items():
        axes.set_xlabel(f"{_FOREST[metric][0]}, 95 % interval over patients")
    return figure


# metric: (name, value without any signal)
_FOREST = {"auroc": ("AUROC", 0.5), "spearman": ("Spearman's correlation", 0.0),
           "kappa": ("weighted kappa", 0.0), "c_index": ("Harrell's C", 0.5)}  # fmt: skip


def _entries(rows: pd.DataFrame) -> pd.DataFrame:
    # All patients first, then site by site; within each, encoders in the order of the table.
    group = rows["group"].where(rows["group"] != "all", "")
    return rows.assign(_group=group).sort_values("_group", kind="stable")


def _forest_panel(axes: Axes, task: str, rows: pd.DataFrame, colors: dict[str, str]) -> None:
    entries = _entries(rows)
    place, last = 0.0, ""
    names: list[str] = []
    places: list[float] = []
    for row in entries.to_dict("records"):
        place += 0.6 if row["_group"] != last and places else 0.0
        last = row["_group"]
        whole = row["group"] == "all"
        few = not whole and row["patients"] < FEW_PATIENTS
        color = FAINT if few else colors[row["encoder"]]
        axes.plot([row["low"], row["high"]], [place] * 2, color=color, lw=2.4 if whole else 1.3)
        axes.plot(row["value"], place, "o" if whole else "s", color=color, ms=6.5 if whole else 4)
        head = "" if row["head"] in ("linear", COLUMNS_HEAD) else f" + {row['head']}"
        site = "" if whole else f", {row['group'].replace('=', ' ')}"
        names.append(f"{row['run']}{head}{site} ({people(row['patients'])})")
        places.append(place)
        place += 1.0
    name, nothing = _FOREST[rows["metric"].iloc[0]]
    axes.axvline(nothing, color="#999999", lw=1, ls=(0, (4, 3)))
    axes.set_yticks(places, names, fontsize=8.5)
    axes.set_ylim(place - 0.4, -0.6)
    axes.set_title(f"{task}: {name} over all test patients and by site", loc="left", fontsize=10.5)
    style_axes(axes)


_AGAINST = {
    "confounded_auroc": ("AUROC, stain confounded with label", "higher is more robust", 0.5),
    "stain_retrieval_top1": ("retrieval under re-staining, top 1", "higher is more robust", None),
    "site_predictability": ("site predicted by a linear probe", "lower is more robust", None),
}  # fmt: skip


def robustness(long: pd.DataFrame, encoders: Sequence[str]) -> Figure | str:
    """Draw all robustness metrics with their intervals, a block of panels per task.

    For tile tasks, some metrics are drawn against AUROC. Each encoder and seed has a marker.

    Args:
        long: rows of `table.long_table`; tasks with robustness metrics are drawn.
        encoders: all encoders of the benchmark, in order, for their colors.
    """
    found = long[(long["head"] == "") & np.isfinite(long["value"])]
    tasks = found.loc[found["metric"].isin([*_AGAINST, *_ALONE]), "task"].unique().tolist()
    if not tasks:
        return "No robustness figure: not requested for this benchmark, or no value is defined."
    panels = {task: _panels(long[long["task"] == task]) for task in tasks}
    down = sum(-(-len(shown) // _ACROSS) for shown in panels.values())
    figure = Figure(figsize=(4.2 * _ACROSS, 3.9 * down), dpi=_INCH, layout="constrained")
    grid = iter(figure.subplots(down, _ACROSS, squeeze=False))
    for task, shown in panels.items():
        rows = long[long["task"] == task]
        axes = [one for _ in range(-(-len(shown) // _ACROSS)) for one in next(grid)]
        _block(axes, task, rows, shown, encoder_colors(encoders))
    return figure


_ACROSS = 4  # panels


def _panels(rows: pd.DataFrame) -> list[str]:
    """Metrics of a task that have a panel, in the order of the panels."""
    found = rows[(rows["head"] == "") & np.isfinite(rows["value"])]
    is_of_all = (found["metric"] == _BY_SITE) & (found["group"] == "all")
    known = set(found.loc[~is_of_all, "metric"])
    return [metric for metric in [*_AGAINST, *_ALONE, _BY_SITE] if metric in known]


def _block(
    panels: Sequence[Axes], task: str, rows: pd.DataFrame, shown: list[str], colors: dict[str, str]
) -> None:
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes, metric in zip(panels, shown, strict=False):
        whole = rows[rows["group"] == "all"]
        if metric in _AGAINST and "linear" in set(rows["head"]):
            _against(axes, task, whole, metric, colors)
        elif metric == _BY_SITE:
            _by_site(axes, task, rows, colors)
        else:
            _alone(axes, task, rows, metric, colors)
    if handles := panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(handles=handles, frameon=False, fontsize=8.5, loc="best")


def _alone(axes: Axes, task: str, rows: pd.DataFrame, metric: str, colors: dict[str, str]) -> None:
    # The row of the worst site has the group of that site, all others the group `all`.
    found = rows[(rows["metric"] == metric) & (rows["head"] == "")]
    for place, row in enumerate(found.to_dict("records")):
        color = colors[row["encoder"]]
        axes.plot([row["low"], row["high"]], [place] * 2, color=color, lw=1.8)
        axes.plot(
            row["value"], place, MARKERS[place % len(MARKERS)], color=color, ms=7, mec="white"
        )
    site = found["group"].str.removeprefix("site=")
    names = found["run"].where(found["group"] == "all", found["run"] + ", " + site)
    axes.set_yticks(range(len(found)), names, fontsize=8)
    axes.set_ylim(len(found) - 0.5, -0.5)
    style_axes(axes)
    title, sense = (*_AGAINST.get(metric, ()), *_ALONE.get(metric, ()))[:2]
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _title(axes, f"{task}: {title}", sense)


def _title(axes: Axes, text: str, note: str) -> None:
    """A panel's title in lines that fit its width, with a note below."""
    axes.set_title(f"{fill(text, TITLE_CHARACTERS)}\n({note})", fontsize=10)


def _by_site(axes: Axes, task: str, rows: pd.DataFrame, colors: dict[str, str]) -> None:
    found = rows[(rows["metric"] == _BY_SITE) & (rows["head"] == "") & (rows["group"] != "all")]
    sites = sorted(found["group"].unique())
    runs = found["run"].unique().tolist()
    for row in found.to_dict("records"):
        turn = runs.index(row["run"])
        place = sites.index(row["group"]) + 0.7 * ((turn + 0.5) / len(runs) - 0.5)
        color = colors[row["encoder"]]
        axes.plot([row["low"], row["high"]], [place] * 2, color=color, lw=1.4)
        axes.plot(row["value"], place, MARKERS[turn % len(MARKERS)], color=color, ms=6, mec="white")
    axes.set_yticks(range(len(sites)), [site.removeprefix("site=") for site in sites], fontsize=8.5)
    axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.axvline(0.5, color="#999999", lw=1, ls=(0, (4, 3)))
    style_axes(axes)
    _title(axes, f"{task}: AUROC by site", "original tiles")


def _against(
    axes: Axes, task: str, rows: pd.DataFrame, metric: str, colors: dict[str, str]
) -> None:
    title, sense, chance = _AGAINST[metric]
    accuracy = rows[(rows["metric"] == "auroc") & (rows["head"] == "linear")].set_index("run")
    found = rows[rows["metric"] == metric].set_index("run")
    for place, (run, row) in enumerate(found.iterrows()):
        if run not in accuracy.index:
            continue
        x, color = accuracy.loc[run], colors[row["encoder"]]
        marker = MARKERS[place % len(MARKERS)]
        axes.plot([x["low"], x["high"]], [row["value"]] * 2, color=color, lw=1.2, alpha=0.7)
        axes.plot([x["value"]] * 2, [row["low"], row["high"]], color=color, lw=1.2, alpha=0.7)
        axes.plot(
            x["value"], row["value"], marker, color=color, ms=9, mec="white", label=run, ls=""
        )
    if metric == "site_predictability":
        chance = rows.loc[rows["metric"] == "site_chance", "value"].min()
    if chance is not None and np.isfinite(chance):
        axes.axhline(chance, color="#999999", lw=1, ls=(0, (4, 3)))
        axes.annotate("chance", (1, chance), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom", fontsize=8, color="#777777")  # fmt: skip
    style_axes(axes)
    _title(axes, title, sense)
    axes.set(xlabel=f"{task}: AUROC on test patients", ylabel=_SHORT[metric], ylim=(-0.03, 1.03))


_ALONE = {  # metric: (title, how to read it)
    "robustness_index": ("robustness index", "above 0.5: grouped by label, not site"),
    "croma": ("CRoMa", "above 0: grouped by label, not site"),
    "stain_cosine": ("cosine, same tile re-stained", "1: invariant to stain"),
    "stain_margin": ("stain margin: cosine, same − other tiles", "higher is more robust"),
    "stain_retrieval_top10": ("retrieval under re-staining, top 10", "higher is more robust"),
    "worst_site_auroc": ("AUROC at the worst site", "higher is better"),
    "site_drop": ("drop in AUROC at held-out sites", "lower is more robust"),
    "alignment": ("alignment of two stainings", "lower is more robust"),
    "uniformity": ("uniformity", "near 0: collapsed"),
    "effective_rank": ("effective rank", "near 1: collapsed"),
}
_BY_SITE = "clean_auroc"
_SHORT = {
    "confounded_auroc": "AUROC, stain and label reversed",
    "stain_retrieval_top1": "share of tiles, top 1",
    "site_predictability": "balanced accuracy",
}


def few_shot(
    curves: Mapping[str, Mapping[str, pd.DataFrame]], encoders: Sequence[str]
) -> Figure | str:
    """Draw AUROC by number of labelled tiles per class, a panel per task and a line per encoder.

    Args:
        curves: task → encoder → rows of `probe.few_shot`; tasks without rows are left out.
        encoders: all encoders of the benchmark, in order, for their colors.
    """
    found = {task: lines for task, lines in curves.items() if any(map(len, lines.values()))}
    if not found:
        return "No few-shot curve: the benchmark has no tile task."
    figure = Figure(figsize=(5.4 * len(found), 4.4), dpi=_INCH, layout="constrained")
    colors = encoder_colors(encoders)
    panels = figure.subplots(1, len(found), squeeze=False).flat
    for axes, (task, lines) in zip(panels, found.items(), strict=True):
        for place, (encoder, rows) in enumerate(lines.items()):
            auroc = rows.groupby("shots")["auroc"]
            shots = np.array(sorted(auroc.groups), float)
            low, high = auroc.quantile(0.025), auroc.quantile(0.975)
            marker, color = MARKERS[place % len(MARKERS)], colors[encoder]
            axes.plot(shots, auroc.mean(), marker=marker, color=color, label=encoder, lw=1.8)
            axes.fill_between(shots, low, high, color=color, alpha=0.13, lw=0)
        axes.axhline(0.5, color="#999999", lw=1, ls=(0, (4, 3)))
        axes.set_xscale("log", base=2)
        ticks = sorted({s for rows in lines.values() for s in rows["shots"]})
        axes.set_xticks(ticks, [str(s) for s in ticks])
        style_axes(axes)
        axes.set(title=task, xlabel="labelled tiles per class", ylabel="AUROC on test tiles")
        axes.legend(frameon=False, fontsize=8.5, loc="lower right", title="95 % of the draws")
    return figure


def umap(found: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure | str:
    """Draw the UMAP of a sample of tiles, a column per encoder: by site above, by label below.

    Args:
        found: task → encoder → one row per tile with `x`, `y`, `site`, `label`.
    """
    if not found:
        return "No UMAP: robustness is not requested for this benchmark, or it has no tile task."
    columns = max(map(len, found.values()))
    figure = Figure(
        figsize=(3.4 * columns + 1.2, 6.4 * len(found)), dpi=_INCH, layout="constrained"
    )
    grid = figure.subplots(2 * len(found), columns, squeeze=False)
    for place, (task, encoders) in enumerate(found.items()):
        for line, column in zip(grid[2 * place : 2 * place + 2], ("site", "label"), strict=True):
            _umap_row(line, task, encoders, column)
    return figure


def _umap_row(
    line: Sequence[Axes], task: str, encoders: Mapping[str, pd.DataFrame], column: str
) -> None:
    words = sorted({w for rows in encoders.values() for w in rows[column].astype(str)})
    colors = {word: PALETTE[i % len(PALETTE)] for i, word in enumerate(words)}
    for axes, (encoder, rows) in zip(line, encoders.items(), strict=False):
        mixed = rows.sample(frac=1, random_state=0)  # so that no group covers another
        axes.scatter(
            mixed["x"], mixed["y"], s=7, lw=0, alpha=0.7,
            c=[colors[word] for word in mixed[column].astype(str)],
        )  # fmt: skip
        axes.set_title(f"{encoder}: {task} by {column}", fontsize=9.5)
    for axes in line:
        axes.set(xticks=[], yticks=[])
        axes.set_visible(bool(axes.get_title()))
        axes.spines[:].set_color("#cccccc")
    handles = [Line2D([], [], marker="o", ls="", color=c, label=w) for w, c in colors.items()]
    line[0].legend(handles=handles, title=column, fontsize=8, loc="best", framealpha=0.7)
