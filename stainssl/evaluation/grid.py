"""Cells of the table of results, and the notes below it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from stainssl.evaluation.baselines import FLOORS
from stainssl.evaluation.baselines import HEAD as COLUMNS_HEAD
from stainssl.evaluation.fusion import ADDED
from stainssl.evaluation.long_table import side_name
from stainssl.evaluation.metrics import METRICS
from stainssl.evaluation.ordinal_metrics import ORDINAL_METRICS
from stainssl.evaluation.regression_metrics import REGRESSION_METRICS
from stainssl.evaluation.survival_metrics import SURVIVAL_METRICS
from stainssl.evaluation.table import (
    FEW_MARK,
    FEW_PATIENTS,
    FINE_TUNE,
    LINEAR,
    NOTHING,
    SEEN_MARK,
    Cell,
    ResultGrid,
    people,
)

TITLES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "macro F1",
    "f1_weighted": "weighted F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "mae": "MAE",
    "r2": "R²",
    "kappa": "weighted kappa",
    "auroc_cuts": "AUROC over cuts",
    "c_index": "Harrell's C",
    "c_index_uno": "Uno's C",
    "auroc_time": "AUROC over time",
    "integrated_brier": "integrated Brier score",
}
SITE_METRICS = ("auroc", "brier", "calibration_error")
REGRESSION_SITE_METRICS = ("spearman", "mae")
ORDINAL_SITE_METRICS = ("kappa", "auroc_cuts")
SURVIVAL_SITE_METRICS = ("c_index", "integrated_brier")
LEVEL_OF_SIGNIFICANCE = 0.05
NOT_BEATEN = (
    "Bold: the best of a column, and all that it does not beat significantly (paired test over"
    " patients, Holm-corrected over all comparisons of the table, 5 %)."
)
SEEN_NOTE = f"{SEEN_MARK} Pretraining saw test patients of the task."
BASELINES = (
    "site only, clinical only: a linear probe on the sheet's columns for site and scanner, or on"
    " the task's clinical columns, without any image; not part of the comparisons."
)
FUSION = (
    "+ clinical: the predictions of the head and of the clinical columns, pooled with equal"
    " weights (fusion: late), or a head that takes both (fusion: gated); these rows are compared"
    " with clinical only too."
)
FINE_TUNED = (
    "fine-tune: in every fold the network itself was trained on the task's labels, with early"
    " stopping on validation patients (protocol fine-tune); robustness is that of the encoder"
    " before fine-tuning."
)
INTERVALS = "In brackets: 95 % confidence intervals over patients."
RANKED = " AUROC and AUPRC rank test patients within a fold and repeat."
DASH = " A dash: undefined."
REGRESSION_NOTE = (
    "Pearson, Spearman: correlation of predictions with labels, over test patients within a fold"
    " and repeat. MAE: mean absolute error in the label's unit. R²: 1 is perfect, 0 is as good as"
    " the test patients' mean."
)
ORDINAL_NOTE = (
    "Weighted kappa: agreement of ordered classes beyond chance, with quadratic weights. AUROC"
    " over cuts: mean AUROC of the splits between adjacent classes."
)
SURVIVAL_NOTE = (
    "Harrell's C: share of comparable pairs of test patients, within a fold and repeat, that are"
    " ranked correctly (0.5: chance). Uno's C and the AUROC over time (at deciles of the event"
    " times) are weighted by the inverse probability of censoring. Integrated Brier score: squared"
    " error of the predicted survival, lower is better. Baselines of columns are Cox regressions."
)
SEEDS = "Rows of several seeds: their mean, with an interval over patients and pretraining seeds."
FEW = (
    f"{FEW_MARK} A site with fewer than {FEW_PATIENTS} patients: too few for its results to mean"
    " much."
)
CALIBRATION = (
    "Calibration error: mean difference between predicted probability and observed frequency over"
    " ten bins; with few patients it is above 0 by chance alone."
)
SPREAD = "± is the standard deviation over pretraining seeds."


@dataclass(frozen=True)
class Column:
    """A column of the table, and the rows of the long table that it shows."""

    title: str
    task: str
    metric: str
    of_encoder: bool  # a robustness metric, which does not depend on the head


class Family(NamedTuple):
    """Metrics of a kind of label, those shown by site, and the note about them."""

    metrics: Collection[str]
    of_site: tuple[str, ...]
    note: str = ""


FAMILIES = (
    Family((), SITE_METRICS),
    Family(REGRESSION_METRICS, REGRESSION_SITE_METRICS, REGRESSION_NOTE),
    Family(ORDINAL_METRICS, ORDINAL_SITE_METRICS, ORDINAL_NOTE),
    Family(SURVIVAL_METRICS, SURVIVAL_SITE_METRICS, SURVIVAL_NOTE),
)


def columns_of(long: pd.DataFrame, shown_metrics: Mapping[str, Sequence[str]]) -> list[Column]:
    """Columns of the table: the metrics of each task, then robustness metrics."""
    primary = [
        Column(
            f"{task}: {TITLES[metric]} ({_patients(rows)}{_events(long, task)})",
            task,
            metric,
            False,
        )
        for task, metrics in shown_metrics.items()
        for metric in metrics
        if len(rows := _of_heads(long, task, metric))
    ]
    shown = {
        "confounded_auroc": "confounded AUROC",
        "stain_retrieval_top1": "stain retrieval, top 1",
        "site_predictability": "site predictability",
    }
    extra = []
    for metric, title in shown.items():
        rows = long[(long["metric"] == metric) & (long["group"] == "all")]
        for task, mine in rows.groupby("task", sort=False):
            chance = long[(long["metric"] == "site_chance") & (long["task"] == task)]["value"]
            said = f", chance {chance.iloc[0]:.2f}" if metric.startswith("site") else ""
            full = f"{task}: {title} ({_patients(mine)}{said})"
            extra.append(Column(full, str(task), metric, True))
    return primary + extra


def _of_heads(long: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    rows = long[(long["task"] == task) & (long["metric"] == metric)]
    return rows[(rows["group"] == "all") & (rows["head"] != "")]


def _patients(rows: pd.DataFrame) -> str:
    low, high = int(rows["patients"].min()), int(rows["patients"].max())
    said = people(low) if low == high else f"{low}–{high} patients"
    classes = rows["classes"].max()
    return f"{said}, {int(classes)} classes" if classes > 2 else said


def _events(long: pd.DataFrame, task: str) -> str:
    """`, 12 events` for survival tasks, with the range if encoders differ; otherwise empty."""
    rows = _of_heads(long, task, "events")
    if not len(rows):
        return ""
    counts = (rows["value"] * rows["units"]).round().astype(int)
    low, high = counts.min(), counts.max()
    return f", {low} events" if low == high else f", {low}–{high} events"


def format_interval(value: float, low: float, high: float, *, between: str = "–") -> str:
    """Format a value as `0.87 (0.80–0.93)`; without brackets if no interval, `–` if undefined.

    Args:
        value, low, high: value and limits; NaN if undefined.
        between: separator of the limits, a word if they may be negative.
    """
    if not np.isfinite(value):
        return NOTHING
    if not np.isfinite(low):
        return f"{value:.2f}"
    return f"{value:.2f} ({low:.2f}{between}{high:.2f})"


def format_mean_sd(values: Sequence[float]) -> str:
    """Format mean and standard deviation over seeds: `0.87 ± 0.02`; `–` if any is undefined."""
    if not np.isfinite(values).all():
        return NOTHING
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def make_grid(
    long: pd.DataFrame, compared: pd.DataFrame, shown: Mapping[str, Sequence[str]]
) -> ResultGrid:
    """Build the table: a row per encoder and head, and one per seed if there are several.

    Args:
        long: as returned by `long_table`.
        compared: as returned by `comparisons`; they determine what is bold.
        shown: task → metrics that are columns.
    """
    columns = columns_of(long, shown)
    rows: list[tuple[str, str]] = []
    cells: list[list[Cell]] = []
    heads = _heads(long)
    of_encoder = _heads_of_encoders(heads)
    for encoder, head in heads:
        here = head == of_encoder[encoder]
        own = long[long["encoder"] == encoder]
        runs = own.loc[own["seeds"] == 1, "run"].unique().tolist()
        found = [_cell_rows(long, encoder, head, column, here) for column in columns]
        bold = [_in_bold(long, compared, encoder, head, column) for column in columns]
        if len(runs) > 1:
            rows.append((f"{encoder} ({len(runs)} seeds)", head))
            cells.append([_aggregate(f, b) for f, b in zip(found, bold, strict=True)])
            bold = [False] * len(columns)
        for run in runs:
            rows.append((run, head))
            mine = [f[f["run"] == run] for f in found]
            cells.append([_single(f, b) for f, b in zip(mine, bold, strict=True)])
    notes = _notes(cells, {column.metric for column in columns})
    notes += _family_notes(set(long["metric"]))
    notes += [note for floor, note in FLOORS.items() if (long["encoder"] == floor).any()]
    notes += [SEEDS] if (long["seeds"] > 1).any() else []
    notes += [BASELINES] if any(h == COLUMNS_HEAD for _, h in heads) else []
    notes += [FINE_TUNED] if any(h == FINE_TUNE for _, h in heads) else []
    notes += [FUSION] if any(h.endswith(ADDED) for _, h in heads) else []
    return ResultGrid([c.title for c in columns], rows, cells, notes)


def _heads(long: pd.DataFrame) -> list[tuple[str, str]]:
    pairs = long.loc[long["head"] != "", ["encoder", "head"]].drop_duplicates()
    order = {name: i for i, name in enumerate(pairs["encoder"].unique())}
    found = [(str(e), str(h)) for e, h in pairs.itertuples(index=False)]
    return sorted(found, key=lambda pair: order[pair[0]])


def _heads_of_encoders(heads: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Encoder → head in whose row its robustness is shown: the linear probe, or else the first."""
    linear = {encoder: head for encoder, head in heads if head == LINEAR}
    return dict(reversed(heads)) | linear


def _cell_rows(
    long: pd.DataFrame, encoder: str, head: str, column: Column, here: bool
) -> pd.DataFrame:
    # Rows of one cell, one per seed. Robustness is shown in one row of an encoder only.
    wanted = "" if column.of_encoder else head
    rows = long[
        (long["encoder"] == encoder)
        & (long["head"] == wanted)
        & (long["task"] == column.task)
        & (long["metric"] == column.metric)
        & (long["group"] == "all")
    ]
    return rows if here or not column.of_encoder else rows.head(0)


def _single(rows: pd.DataFrame, bold: bool) -> Cell:
    if not len(rows):
        return Cell()
    row = rows.iloc[0]
    is_signed = row["metric"] in METRICS and METRICS[row["metric"]].bounds != (0.0, 1.0)
    between = " to " if is_signed else "–"
    text = format_interval(row["value"], row["low"], row["high"], between=between)
    few = str(row["group"]).startswith("site=") and row["patients"] < FEW_PATIENTS
    return Cell(text, bold and text != NOTHING, bool(row["seen"]), bool(few))


def _aggregate(rows: pd.DataFrame, bold: bool) -> Cell:
    if not len(rows):
        return Cell()
    if len(mean := rows[rows["seeds"] > 1]):
        return _single(mean, bold)
    text = format_mean_sd(rows["value"].tolist())
    return Cell(text, bold and text != NOTHING, bool(rows["seen"].any()))


def _in_bold(
    long: pd.DataFrame, compared: pd.DataFrame, encoder: str, head: str, column: Column
) -> bool:
    # Whether this is the best of its column, or not significantly worse.
    test = column.metric
    if test not in (*TITLES, "confounded_auroc"):
        return False
    rows = long[(long["task"] == column.task) & (long["metric"] == test) & (long["group"] == "all")]
    rows = rows[rows["head"] != COLUMNS_HEAD]  # baselines are not compared
    names = [side_name(e, h) for e, h in zip(rows["encoder"], rows["head"], strict=True)]
    means = rows["value"].groupby(names).mean().dropna()
    me = side_name(encoder, "" if column.of_encoder else head)
    if len(means) < 2 or me not in means.index:
        return False
    is_higher_better = test not in METRICS or METRICS[test].higher_is_better
    best = str(means.idxmax() if is_higher_better else means.idxmin())
    return me == best or not _beats(compared, column.task, test, best, me)


def _beats(compared: pd.DataFrame, task: str, test: str, best: str, other: str) -> bool:
    mine = compared[(compared["task"] == task) & (compared["test"] == test)]
    pair = mine[
        ((mine["first"] == best) & (mine["second"] == other))
        | ((mine["first"] == other) & (mine["second"] == best))
    ]
    return bool((pair["p_holm"] < LEVEL_OF_SIGNIFICANCE).any())


def _notes(cells: list[list[Cell]], metrics: Collection[str]) -> list[str]:
    every = [cell for row in cells for cell in row]
    notes = [INTERVALS + RANKED * (not {"auroc", "auprc"}.isdisjoint(metrics)) + DASH]
    if any("±" in cell.text for cell in every):
        notes.append(SPREAD)
    if any(cell.gray for cell in every):
        notes.append(FEW)
    if any(cell.bold for cell in every):
        notes.append(NOT_BEATEN)
    if any(cell.seen for cell in every):
        notes.append(SEEN_NOTE)
    return notes


def make_site_grid(long: pd.DataFrame) -> ResultGrid:
    """Build the table of results by site: a row per task, encoder, seed, head and site.

    Args:
        long: as returned by `long_table`; tasks with a single site have no row.
    """
    results = long[(long["head"] != "") & long["group"].str.startswith("site=")]
    metrics = _site_metrics(results)
    rows: list[tuple[str, str]] = []
    cells: list[list[Cell]] = []
    keys = ["task", "run", "head", "group"]
    for (task, run, head, group), mine in results.groupby(keys, sort=False):
        patients = int(mine["patients"].iloc[0])
        site = str(group).removeprefix("site=")
        name = str(run) if head == COLUMNS_HEAD else side_name(str(run), str(head))
        rows.append((f"{task}: {name}", f"{site} ({people(patients)})"))
        cells.append([_single(mine[mine["metric"] == m], False) for m in metrics])
    notes = [*_notes(cells, metrics), *_site_notes(metrics)]
    columns = [TITLES[metric] for metric in metrics]
    return ResultGrid(columns, rows, cells, notes, ("task and encoder", "site"))


def _site_notes(metrics: Sequence[str]) -> list[str]:
    notes = [CALIBRATION] if "calibration_error" in metrics else []
    return notes + _family_notes(set(metrics))


def _family_notes(metrics: set[str]) -> list[str]:
    """Notes about the metrics of the kinds of label that occur."""
    return [family.note for family in FAMILIES if family.note and metrics & set(family.metrics)]


def _site_metrics(results: pd.DataFrame) -> list[str]:
    """Columns of the table by site: those of each kind of label that occurs."""
    kinds = [family.of_site for family in FAMILIES]
    shown = [m for kind in kinds if results["metric"].eq(kind[0]).any() for m in kind]
    return shown or list(SITE_METRICS)
