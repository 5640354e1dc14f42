"""Tables and pictures of the values measured by `benchmarks/robustness_real.py`.

A result is averaged over the tiles of a patient, over seeds and over patients. Its interval is over
resampled patients and does not include the variation between seeds, whose own results are listed.
**Worst** is the lowest mean over the pairs of stains (or the lowest AUROC over the stains), for
each encoder separately, and determined again in every resample. Differences of two encoders use the
same resamples of patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.robustness_measure import DOSE, ORIGINAL, SHIFTED
from stainssl.evaluation.intervals import drawn_estimate
from stainssl.evaluation.metrics import RESAMPLES
from stainssl.evaluation.ranking import weighted_auroc
from stainssl.figures.benchmark import LINES, MARKERS, encoder_colors

CLAIMED, BASELINE = ("stain-invariant", "stain-invariant, hed"), "simclr"
OD_PAIR = f"{ORIGINAL} | {SHIFTED}"
RETRIEVAL = ("top1", "top10", "photo_map", "margin")
GEOMETRY = ("effective_rank", "alignment", "uniformity")
SCORE = "score: "

Draws = NDArray[np.float64]  # (1 + R,): the value, and that of every resample


class Row(NamedTuple):
    """A result of an encoder, or its difference from another (`minus`), with a 95 % interval."""

    encoder: str
    minus: str
    metric: str
    value: float
    low: float
    high: float
    patients: int
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """Resamples of the patients, the same for every encoder.

    Attributes:
        patients: (P,) names.
        weights: (1 + R, P) counts of each patient; the first row is all ones.
    """

    patients: NDArray
    weights: NDArray

    @staticmethod
    def of(patients: Sequence[str], seed: int = 0) -> Sample:
        """Resample the patients with replacement."""
        names = np.unique(np.asarray(patients, str))
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
        return Sample(names, np.vstack([np.ones((1, len(names))), draws]))


def _means(table: pd.DataFrame, sample: Sample) -> NDArray:
    """(1 + R, K): mean over the patients with a value, for each of K pairs."""
    wide = table.pivot_table(index="patient", columns="pair", values="value", aggfunc="mean")
    values = wide.reindex(sample.patients).to_numpy()
    known = np.isfinite(values)
    top = sample.weights @ np.where(known, values, 0)
    bottom = sample.weights @ known
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)


def _worst(means: NDArray) -> Draws:
    return np.nanmin(means, axis=1)


def _average(means: NDArray) -> Draws:
    return np.nanmean(means, axis=1)


def mean_figures(table: pd.DataFrame, sample: Sample) -> dict[str, Draws]:
    """Results of one encoder that are means over tiles: name → draws."""
    found: dict[str, Draws] = {}
    known = table.dropna(subset="value")  # e.g. `photo_map` of a photograph with a single tile
    metrics = {str(metric): rows for metric, rows in known.groupby("metric")}
    for name in (m for m in RETRIEVAL if m in metrics):
        means = _means(metrics[name], sample)
        found[f"{name}, worst pair"], found[f"{name}, mean of pairs"] = (
            _worst(means), _average(means),
        )  # fmt: skip
        od = metrics[name][metrics[name]["pair"] == OD_PAIR]
        if len(od):
            found[f"{name}, od shift"] = _average(_means(od, sample))
    if "stain_hit" in metrics:
        found["stain told"] = _average(_means(metrics["stain_hit"], sample))
    if "dose_top1" in metrics:
        for name, rows in metrics["dose_top1"].groupby("pair"):
            found[f"top1, {name}"] = _average(_means(rows, sample))
    return found


def auroc_figures(table: pd.DataFrame, sample: Sample) -> dict[str, Draws]:
    """AUROCs of one encoder, averaged over seeds: name → draws."""
    scores = table[table["metric"].str.startswith(SCORE)]
    found = {
        f"auroc, {metric.removeprefix(SCORE)}": np.mean(
            [_auroc(rows, sample) for _, rows in of_test.groupby("seed")], axis=0
        )
        for metric, of_test in scores.groupby("metric")
    }
    unseen = [draws for name, draws in found.items() if _is_unseen(name)]
    if unseen:
        found["auroc, worst stain"] = np.fmin.reduce(unseen)  # ignores NaN (a single class)
    return found


def _is_unseen(name: str) -> bool:
    return name.startswith(("auroc, centre", "auroc, site", f"auroc, {SHIFTED}"))


def _auroc(rows: pd.DataFrame, sample: Sample) -> Draws:
    patient = np.searchsorted(sample.patients, rows["patient"].to_numpy(str))
    positive, score = rows["y"].to_numpy() == 1, rows["value"].to_numpy()
    return weighted_auroc(positive, score, patient, sample.weights)[0]


def figures(table: pd.DataFrame, sample: Sample) -> dict[str, Draws]:
    """All results of one encoder over the patients in `sample`: name → draws."""
    tested = table[table["patient"].isin(sample.patients)]
    return mean_figures(tested, sample) | auroc_figures(tested, sample)


def summarise(values: pd.DataFrame) -> pd.DataFrame:
    """Compute all results: of each encoder, minus `simclr`, and of `CLAIMED` minus each.

    Args:
        values: `run_values` of all runs, with columns `encoder`, `seed` and `fold`.

    Returns:
        A table with the columns of `Row`, one row per result.
    """
    tested = values[values["metric"].isin(RETRIEVAL)]
    sample, names = Sample.of(tested["patient"]), list(dict.fromkeys(values["encoder"]))
    of = {n: values[values["encoder"] == n] for n in names}
    drawn = {name: figures(table, sample) for name, table in of.items()}
    seeds = {name: [figures(t, Sample(sample.patients, sample.weights[:1]))
                    for _, t in table.groupby("seed")] for name, table in of.items()}  # fmt: skip
    rows = [
        _row(name, "", metric, draws, sample, [s[metric][0] for s in seeds[name] if metric in s])
        for name in names for metric, draws in drawn[name].items()
    ]  # fmt: skip
    for name, base in _compared(names):
        rows += [
            _row(name, base, metric, draws - drawn[base][metric], sample, [])
            for metric, draws in drawn[name].items() if metric in drawn[base]
        ]  # fmt: skip
    return pd.DataFrame([*rows, *_centre_rows(of), *_plain_rows(of)], columns=Row._fields)


def _compared(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from ((n, BASELINE) for n in names if BASELINE in names and n != BASELINE)
    others = [n for n in names if n != BASELINE]
    yield from ((c, n) for c in CLAIMED if c in names for n in others if n != c)


def _row(
    name: str, minus: str, metric: str, draws: Draws, sample: Sample, by_seed: Sequence[float]
) -> Row:
    count = len(sample.patients)
    low, high = drawn_estimate(float(draws[0]), draws[1:], count).interval
    return Row(name, minus, metric, float(draws[0]), low, high, count, tuple(map(float, by_seed)))


def _centre_rows(of: Mapping[str, pd.DataFrame]) -> Iterator[Row]:
    """Predictability of the centre from its own crops; tiles are resampled."""
    for name, table in of.items():
        rows = table[table["metric"] == "centre_hit"]
        if len(rows):
            sample = Sample.of(rows["patient"])
            seeds = rows.groupby("seed")["value"].mean()
            yield _row(name, "", "centre told", _average(_means(rows, sample)), sample, seeds)


def _plain_rows(of: Mapping[str, pd.DataFrame]) -> Iterator[Row]:
    """Geometry and distances: mean, minimum and maximum over folds and seeds, no interval."""
    for name, table in of.items():
        rows = table[table["metric"].isin([*GEOMETRY, "distance"])]
        for (metric, pair), found in rows.groupby(["metric", "pair"]):
            value = found["value"]
            words = f"{metric}, {pair}" if pair else metric
            yield Row(name, "", words, value.mean(), value.min(), value.max(), 0, ())


def comparable(values: pd.DataFrame) -> pd.DataFrame:
    """Keep the folds and seeds that are finished for every encoder."""
    encoders = values.groupby(["seed", "fold"])["encoder"].transform("nunique")
    return values[encoders == values["encoder"].nunique()].reset_index(drop=True)


# --- markdown -------------------------------------------------------------------------------------

MAIN = {
    "top1, worst pair": "top-1, worst pair", "top1, mean of pairs": "top-1, mean of pairs",
    "top10, worst pair": "top-10, worst pair", "photo_map, worst pair": "mAP of the photograph",
    "margin, worst pair": "margin, worst pair", "stain told": "stain told",
    "centre told": "centre told",
}  # fmt: skip
AUROCS = {
    "auroc, as it is": "as they are", "auroc, worst stain": "worst unseen stain",
    "auroc, confounded": "confounded",
}  # fmt: skip
SHAPE = {
    "effective_rank": "effective rank", "alignment": "alignment", "uniformity": "uniformity",
    "top1, od shift": "top-1, density shift alone",
}  # fmt: skip


def markdown(summary: pd.DataFrame, columns: Mapping[str, str], minus: str = "") -> str:
    """Format results with intervals as a Markdown table, one row per encoder.

    Args:
        summary: table from `summarise`.
        columns: metric → heading; metrics without results are left out.
        minus: show differences from this encoder; empty shows results.
    """
    rows = summary[(summary["minus"] == minus) & summary["metric"].isin(list(columns))]
    shown = {m: h for m, h in columns.items() if m in set(rows["metric"])}
    lines = [f"| encoder | {' | '.join(shown.values())} |", "|---" * (len(shown) + 1) + "|"]
    for name, mine in rows.groupby("encoder", sort=False):
        of = {row["metric"]: row for row in mine.to_dict("records")}
        cells = [_cell(of.get(metric), bool(minus)) for metric in shown]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def claims(summary: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Markdown table of each of `CLAIMED` minus every other encoder."""
    mine = summary[summary["encoder"].isin(CLAIMED) & (summary["minus"] != "")]
    turned = mine.assign(encoder=mine["encoder"] + " minus " + mine["minus"], minus="claim")
    return markdown(turned, columns, "claim")


def _cell(row: Mapping[str, Any] | None, signed: bool) -> str:
    if row is None:
        return "–"
    digits = 1 if row["metric"] == "effective_rank" else 3
    sign = "+" if signed else ""
    value, low, high = (f"{row[k]:{sign}.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})".replace("-", "−")


# --- the picture ----------------------------------------------------------------------------------


SHOWN = {
    "top1": ("same tile found first", "top1, worst pair", "top-1, worst pair of stains"),
    "auroc": ("AUROC of a linear probe", "auroc, worst stain", "AUROC, worst unseen stain"),
}


def picture(summary: pd.DataFrame, kind: str) -> Figure:
    """Draw the dose curves, one per encoder, and the worst result of each encoder.

    Args:
        summary: table from `summarise`.
        kind: a key of `SHOWN`.
    """
    plain = summary[summary["minus"] == ""]
    curve, worst, words = SHOWN[kind]
    names = [n for n in dict.fromkeys(plain["encoder"]) if _dose_points(plain, n, kind)]
    figure = Figure(figsize=(11, 4.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = encoder_colors(names)
    for place, name in enumerate(names):
        x, y, low, high = zip(*_dose_points(plain, name, kind), strict=True)
        style = {"marker": MARKERS[place % len(MARKERS)], "ls": LINES[place % len(LINES)]}
        left.plot(x, y, color=colors[name], label=name, lw=1.8, **style)
        left.fill_between(x, low, high, color=colors[name], alpha=0.10, lw=0)
    _label(left, "stain distance from the training tiles, ΔE of LAB", curve)
    left.set_title("The stain moved away (band: 95 % over patients)", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8.5)
    _forest(right, plain[plain["metric"] == worst], colors, words)
    return figure


def _dose_points(plain: pd.DataFrame, name: str, kind: str) -> list[tuple[float, ...]]:
    mine = plain[plain["encoder"] == name].set_index("metric")
    wanted = [m for m in mine.index if m.startswith(f"{kind}, {DOSE}")]
    points = [
        (mine.loc[f"distance, {m.removeprefix(f'{kind}, ')}", "value"],
         *mine.loc[m, ["value", "low", "high"]])
        for m in wanted
    ]  # fmt: skip
    return sorted(points)


def _forest(axes: Axes, rows: pd.DataFrame, colors: Mapping[str, str], words: str) -> None:
    for place, row in enumerate(rows.to_dict("records")):
        color = colors.get(row["encoder"], "#444444")
        axes.plot([row["low"], row["high"]], [place] * 2, color=color, lw=2.2)
        axes.plot(row["value"], place, "o", color=color, ms=7)
        seeds = row["by_seed"]
        axes.plot(seeds, [place + 0.22] * len(seeds), "|", color=color, ms=7)
    axes.set_yticks(range(len(rows)), rows["encoder"].tolist(), fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.6)
    _label(axes, f"{words}; strokes: single seeds", "")
    axes.set_title("At worst, 95 % interval over patients", loc="left", fontsize=10)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def pages(summary: pd.DataFrame) -> str:
    """All tables as one Markdown page."""
    parts = [
        ("Across stains", markdown(summary, MAIN)),
        ("stain-invariant less each other", claims(summary, MAIN)),
        ("Each less simclr", markdown(summary, MAIN, BASELINE)),
        ("The label", markdown(summary, AUROCS)),
        ("The label, stain-invariant less each other", claims(summary, AUROCS)),
        ("The label, each less simclr", markdown(summary, AUROCS, BASELINE)),
        ("Collapse", markdown(summary, SHAPE)),
    ]
    return "\n".join(f"### {title}\n\n{table}" for title, table in parts)
