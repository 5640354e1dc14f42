"""The benchmark's table: the same numbers as CSV, Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stainssl.evaluation.baselines import FLOORS
from stainssl.evaluation.baselines import HEAD as COLUMNS_HEAD
from stainssl.evaluation.compare import COLUMNS as COMPARISON_COLUMNS
from stainssl.evaluation.compare import (
    compare_all,
    holm,
    mean_over_seeds,
    resamples_for,
    shared_rows,
)
from stainssl.evaluation.fusion import ADDED
from stainssl.evaluation.metrics import METRICS, ORDER_METRICS
from stainssl.evaluation.number_metrics import NUMBER_METRICS
from stainssl.evaluation.predictions import ScoredUnits, read_scored
from stainssl.evaluation.survival_metrics import SURVIVAL_METRICS

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
NUMBER_SITE_METRICS = ("spearman", "mae")
ORDER_SITE_METRICS = ("kappa", "auroc_cuts")
SURVIVAL_SITE_METRICS = ("c_index", "integrated_brier")
LEVEL_OF_SIGNIFICANCE = 0.05
FEW_PATIENTS = 5
LINEAR = "linear"  # the head of a tile task
FINE_TUNE = "fine-tune"  # the head of one whose labels the network was trained on
NOTHING = "–"
SEEN_MARK = "†"
NOT_BEATEN = (
    "Bold: the best of a column, and what it does not beat significantly (paired difference over"
    " patients, Holm over all comparisons of the table, 5 %)."
)
SEEN_NOTE = f"{SEEN_MARK} Pretraining saw test patients of the task."
BASELINES = (
    "site only, clinical only: a linear probe on the sheet's columns for site and scanner, or on"
    " the task's clinical columns; it sees no tissue and is not compared."
)
FUSION = (
    "+ clinical: the head's answer and that of the clinical columns, pooled with equal weights"
    " (fusion: late), or a head that takes both (fusion: gated); these rows are compared with"
    " clinical only too."
)
FINE_TUNED = (
    "fine-tune: in every fold the network itself was trained on the task's labels and stopped by"
    " validation patients (protocol fine-tune); figures of robustness are of the encoder before."
)
INTERVALS = (
    "In brackets 95 % intervals over patients. AUROC and AUPRC rank test patients within a fold and"
    " repeat; a dash is a figure that is undefined."
)
OF_NUMBERS = (
    "Pearson, Spearman: correlation of what was said with what is true, of test patients within a"
    " fold and repeat; MAE: mean absolute error in the label's unit; R²: 1 is perfect, 0 as good as"
    " the test patients' mean."
)
OF_ORDER = (
    "Weighted kappa: agreement of ordered classes beyond chance, by the squared distance of"
    " classes; AUROC over cuts: the mean over cuts between classes of who lies above."
)
OF_SURVIVAL = (
    "Harrell's C: of two test patients of a fold and repeat of whom one is known to have outlived"
    " the other, how often that is said (0.5: by chance). Uno's C and the AUROC over time (at"
    " deciles of the event times) weight patients by how probably they are followed up so long."
    " Integrated Brier score: squared error of the survival said, the less the better. Baselines of"
    " columns are Cox's regression."
)
SEEDS = "Rows of several seeds: the mean, its interval over patients and pretraining seeds."
FEW_MARK = "‡"
FEW = (
    f"{FEW_MARK} A site of fewer than {FEW_PATIENTS} patients, whose figures tell next to nothing."
)
CALIBRATION = (
    "Calibration error: how far probabilities are from what came true, mean over ten bins; with few"
    " patients it is above 0 by chance alone."
)
SPREAD = "± is the standard deviation over pretraining seeds."


@dataclass(frozen=True)
class Answer:
    """What one encoder, under one seed and with one head, answered to one task.

    Args:
        task, level: the task's name and level.
        encoder: its name in the config; run: with the seed, where there are several.
        head: the head's name; `linear` or `fine-tune` for tile tasks.
        metrics: rows as `metrics.evaluate` gives.
        predictions: test predictions.
        seen: test patients that its pretraining saw.
        shown: the metrics of the task that are columns of the table, and are compared.
    """

    task: str
    level: str
    encoder: str
    run: str
    head: str
    metrics: pd.DataFrame
    predictions: pd.DataFrame
    seen: int = 0
    shown: Sequence[str] = ("auroc",)

    @cached_property
    def scored(self) -> ScoredUnits:
        """The predictions as metrics and figures take them, read once."""
        return read_scored(self.predictions, self.level)


@dataclass(frozen=True)
class Robustness:
    """Robustness figures of one encoder under one seed: rows with `task`; confounded test."""

    encoder: str
    run: str
    metrics: pd.DataFrame
    confounded: pd.DataFrame


@dataclass(frozen=True)
class Cell:
    """A cell of the table."""

    text: str = NOTHING
    bold: bool = False
    seen: bool = False
    gray: bool = False


@dataclass(frozen=True)
class ResultGrid:
    """A table as it is shown: a cell per row and column, and the notes under it."""

    columns: list[str]
    rows: list[tuple[str, str]]  # encoder (or its seed), head
    cells: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    names: tuple[str, str] = ("encoder", "head")  # what `rows` are


@dataclass(frozen=True)
class Column:
    """A column of figures: where its rows come from in the long table."""

    title: str
    task: str
    metric: str
    of_encoder: bool  # the same for every head: a figure of robustness


class Family(NamedTuple):
    """The metrics of a kind of label, those that are shown by site, and a note."""

    metrics: Collection[str]
    of_site: tuple[str, ...]
    note: str = ""


FAMILIES = (
    Family((), SITE_METRICS),
    Family(NUMBER_METRICS, NUMBER_SITE_METRICS, OF_NUMBERS),
    Family(ORDER_METRICS, ORDER_SITE_METRICS, OF_ORDER),
    Family(SURVIVAL_METRICS, SURVIVAL_SITE_METRICS, OF_SURVIVAL),
)


# --- the long table ---------------------------------------------------------------------------

LONG_COLUMNS = [
    "encoder", "run", "head", "task", "metric", "group", "value", "low", "high",
    "patients", "units", "classes", "seen", "seeds",
]  # fmt: skip


def long_table(answers: Sequence[Answer], robustness: Sequence[Robustness]) -> pd.DataFrame:
    """Every figure of a benchmark, a row each: `LONG_COLUMNS`.

    `seen` counts test patients that pretraining saw; `head` is empty for robustness figures. Where
    an encoder has several seeds, each shown metric has a row of their mean too, which says how many
    `seeds`.
    """
    parts = [
        a.metrics.assign(encoder=a.encoder, run=a.run, head=a.head, task=a.task, seen=a.seen)
        for a in answers
    ]
    seen = {(a.task, a.run): a.seen for a in answers}
    for one in robustness:
        rows = one.metrics.assign(encoder=one.encoder, run=one.run, head="")
        parts.append(rows.assign(seen=[seen.get((task, one.run), 0) for task in rows["task"]]))
    rows = pd.concat([rows.assign(seeds=1) for rows in parts], ignore_index=True)
    means = pd.DataFrame(list(_seed_means(answers)), columns=LONG_COLUMNS)
    every = pd.concat([rows, means], ignore_index=True) if len(means) else rows
    return every.reindex(columns=LONG_COLUMNS)


def _seed_means(answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    sides: dict[tuple[str, str, str], list[Answer]] = {}
    for answer in answers:
        sides.setdefault((answer.task, answer.encoder, answer.head), []).append(answer)
    for (task, encoder, head), seeds in sides.items():
        if len(seeds) < 2:
            continue
        level = seeds[0].level
        tables = shared_rows([seed.predictions for seed in seeds], level)
        scored = [read_scored(rows, level) for rows in tables]
        one = scored[0]
        for metric in seeds[0].shown:
            mean = mean_over_seeds(metric, scored)
            low, high = mean.interval
            yield {
                "encoder": encoder, "run": f"{encoder} ({len(seeds)} seeds)", "head": head,
                "task": task, "metric": metric, "group": "all",
                "value": mean.value, "low": low, "high": high,
                "patients": one.patients, "units": len(one.y), "classes": len(one.present()),
                "seen": max(seed.seen for seed in seeds), "seeds": len(seeds),
            }  # fmt: skip


def robustness_tree(robustness: Sequence[Robustness]) -> dict[str, Any]:
    """Every figure of robustness: task → run → metric → group → the figure.

    Returns:
        JSON types. A figure is `value`, `low`, `high` (null where undefined), `patients`, `units`.
    """
    tree: dict[str, Any] = {}
    for one in robustness:
        for row in one.metrics.to_dict("records"):
            metrics = tree.setdefault(row["task"], {}).setdefault(one.run, {})
            figure = {c: float(row[c]) if np.isfinite(row[c]) else None for c in _FIGURE}
            figure |= {count: int(row[count]) for count in ("patients", "units")}
            metrics.setdefault(row["metric"], {})[row["group"]] = figure
    return tree


_FIGURE = ("value", "low", "high")


def comparisons(
    answers: Sequence[Answer], robustness: Sequence[Robustness], seed: int
) -> pd.DataFrame:
    """Every pair of rows of every column, with Holm's correction over all of them.

    Returns:
        `task`, `test` (a metric shown, or `confounded_auroc`) and `compare.COLUMNS`, where
        `first` and `second` are `encoder` or `encoder + head`. Seeds of one encoder are one side.
    """
    tests = list(_compared(answers, robustness))
    resamples = resamples_for(sum(comb(len(test.sides), 2) for test in tests))
    parts = [
        compare_all(
            test.sides, test.level, metric=test.metric, resamples=resamples, seed=seed
        ).assign(task=test.task, test=test.name)
        for test in tests
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(p_holm=holm(table["p"].tolist()))[["task", "test", *COMPARISON_COLUMNS]]


class _Test(NamedTuple):
    """What is compared in one column: name of a side → its predictions, one table a seed."""

    task: str
    name: str
    level: str
    metric: str
    sides: dict[str, list[pd.DataFrame]]


def _compared(answers: Sequence[Answer], robustness: Sequence[Robustness]) -> Iterator[_Test]:
    for task in dict.fromkeys(a.task for a in answers):
        mine = [a for a in answers if a.task == task]
        sides: dict[str, list[pd.DataFrame]] = {}
        for a in mine:
            sides.setdefault(side_name(a.encoder, a.head), []).append(a.predictions)
        for metric in mine[0].shown:
            yield _Test(task, metric, mine[0].level, metric, sides)
    for task in dict.fromkeys(t for r in robustness for t in _confounded_tasks(r)):
        sides = {}
        for r in robustness:
            mine_too = r.confounded[r.confounded["task"] == task].drop(columns="task")
            sides.setdefault(r.encoder, []).append(mine_too)
        yield _Test(task, "confounded_auroc", "tile", "auroc", sides)


def _confounded_tasks(one: Robustness) -> list[str]:
    return one.confounded["task"].unique().tolist() if len(one.confounded) else []


def side_name(encoder: str, head: str) -> str:
    """How a comparison names an encoder with a head; a linear probe goes without saying."""
    return encoder if head in (LINEAR, "") else f"{encoder} + {head}"


# --- the grid ---------------------------------------------------------------------------------


def columns_of(long: pd.DataFrame, shown_metrics: Mapping[str, Sequence[str]]) -> list[Column]:
    """The columns shown: each task's metrics, then figures of robustness."""
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
    said = f"{low} patients" if low == high else f"{low}–{high} patients"
    classes = rows["classes"].max()
    return f"{said}, {int(classes)} classes" if classes > 2 else said


def _events(long: pd.DataFrame, task: str) -> str:
    """`, 12 events` of a task of kind survival; the least and the most where answers differ."""
    rows = _of_heads(long, task, "events")
    if not len(rows):
        return ""
    counts = (rows["value"] * rows["units"]).round().astype(int)
    low, high = counts.min(), counts.max()
    return f", {low} events" if low == high else f", {low}–{high} events"


def number(value: float, low: float, high: float, *, between: str = "–") -> str:
    """`0.87 (0.80–0.93)`; without brackets where there is no interval, `–` where no value.

    Args:
        between: the limits; a figure that may be negative reads better with words.
    """
    if not np.isfinite(value):
        return NOTHING
    if not np.isfinite(low):
        return f"{value:.2f}"
    return f"{value:.2f} ({low:.2f}{between}{high:.2f})"


def spread(values: Sequence[float]) -> str:
    """`0.87 ± 0.02` over seeds; `–` where a seed has no value."""
    if not np.isfinite(values).all():
        return NOTHING
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def make_grid(
    long: pd.DataFrame, compared: pd.DataFrame, shown: Mapping[str, Sequence[str]]
) -> ResultGrid:
    """The table as shown: a row per encoder and head, and per seed where there are several.

    Args:
        long: `long_table`.
        compared: `comparisons`, which say what stands in bold.
        shown: task → the metrics that are columns.
    """
    columns = columns_of(long, shown)
    rows: list[tuple[str, str]] = []
    cells: list[list[Cell]] = []
    heads = _heads(long)
    first_head = dict(reversed(heads))
    for encoder, head in heads:
        first = head == first_head[encoder]
        own = long[long["encoder"] == encoder]
        runs = own.loc[own["seeds"] == 1, "run"].unique().tolist()
        figures = [_figures(long, encoder, head, column, first) for column in columns]
        bold = [_in_bold(long, compared, encoder, head, column) for column in columns]
        if len(runs) > 1:
            rows.append((f"{encoder} ({len(runs)} seeds)", head))
            cells.append([_aggregate(f, b) for f, b in zip(figures, bold, strict=True)])
            bold = [False] * len(columns)
        for run in runs:
            rows.append((run, head))
            mine = [f[f["run"] == run] for f in figures]
            cells.append([_single(f, b) for f, b in zip(mine, bold, strict=True)])
    notes = _notes(cells)
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


def _figures(
    long: pd.DataFrame, encoder: str, head: str, column: Column, first: bool
) -> pd.DataFrame:
    # Rows of one cell, one a seed. Robustness stands in the first row of an encoder only.
    wanted = "" if column.of_encoder else head
    rows = long[
        (long["encoder"] == encoder)
        & (long["head"] == wanted)
        & (long["task"] == column.task)
        & (long["metric"] == column.metric)
        & (long["group"] == "all")
    ]
    return rows if first or not column.of_encoder else rows.head(0)


def _single(rows: pd.DataFrame, bold: bool) -> Cell:
    if not len(rows):
        return Cell()
    row = rows.iloc[0]
    is_signed = row["metric"] in METRICS and METRICS[row["metric"]].bounds != (0.0, 1.0)
    between = " to " if is_signed else "–"
    text = number(row["value"], row["low"], row["high"], between=between)
    few = str(row["group"]).startswith("site=") and row["patients"] < FEW_PATIENTS
    return Cell(text, bold and text != NOTHING, bool(row["seen"]), bool(few))


def _aggregate(rows: pd.DataFrame, bold: bool) -> Cell:
    if not len(rows):
        return Cell()
    if len(mean := rows[rows["seeds"] > 1]):
        return _single(mean, bold)
    text = spread(rows["value"].tolist())
    return Cell(text, bold and text != NOTHING, bool(rows["seen"].any()))


def _in_bold(
    long: pd.DataFrame, compared: pd.DataFrame, encoder: str, head: str, column: Column
) -> bool:
    # Whether this side is the best of its column, or not beaten by the best.
    test = column.metric
    if test not in (*TITLES, "confounded_auroc"):
        return False
    rows = long[(long["task"] == column.task) & (long["metric"] == test) & (long["group"] == "all")]
    rows = rows[rows["head"] != COLUMNS_HEAD]  # a floor, and not among what is compared
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


def _notes(cells: list[list[Cell]]) -> list[str]:
    every = [cell for row in cells for cell in row]
    notes = [INTERVALS]
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
    """How each answer does at each site: a row per task, encoder, seed, head and site.

    Args:
        long: `long_table`; tasks whose patients are of one site have no row.
    """
    answers = long[(long["head"] != "") & long["group"].str.startswith("site=")]
    metrics = _site_metrics(answers)
    rows: list[tuple[str, str]] = []
    cells: list[list[Cell]] = []
    keys = ["task", "run", "head", "group"]
    for (task, run, head, group), mine in answers.groupby(keys, sort=False):
        patients = int(mine["patients"].iloc[0])
        site = str(group).removeprefix("site=")
        rows.append((f"{task}: {side_name(str(run), str(head))}", f"{site} ({patients} patients)"))
        cells.append([_single(mine[mine["metric"] == m], False) for m in metrics])
    notes = [*_notes(cells), *_site_notes(metrics)]
    columns = [TITLES[metric] for metric in metrics]
    return ResultGrid(columns, rows, cells, notes, ("task and encoder", "site"))


def _site_notes(metrics: Sequence[str]) -> list[str]:
    notes = [CALIBRATION] if "calibration_error" in metrics else []
    return notes + _family_notes(set(metrics))


def _family_notes(metrics: set[str]) -> list[str]:
    """What is to be known of the metrics of some kinds of label."""
    return [family.note for family in FAMILIES if family.note and metrics & set(family.metrics)]


def _site_metrics(answers: pd.DataFrame) -> list[str]:
    """The columns of the table by site: those of each kind of label that is there."""
    kinds = [family.of_site for family in FAMILIES]
    shown = [m for kind in kinds if answers["metric"].eq(kind[0]).any() for m in kind]
    return shown or list(SITE_METRICS)


# --- the formats ------------------------------------------------------------------------------


def _marked(cell: Cell) -> str:
    if cell.text == NOTHING:
        return NOTHING
    return cell.text + SEEN_MARK * cell.seen + FEW_MARK * cell.gray


def _lines(grid: ResultGrid) -> Iterator[tuple[tuple[str, str], list[Cell]]]:
    yield from zip(grid.rows, grid.cells, strict=True)


def to_markdown(grid: ResultGrid) -> str:
    """The grid as a GitHub-flavoured Markdown table with its notes."""
    head = [*grid.names, *grid.columns]
    lines = ["| " + " | ".join(map(markdown, head)) + " |", "|" + " --- |" * len(head)]
    for names, cells in _lines(grid):
        shown = [f"**{_marked(cell)}**" if cell.bold else _marked(cell) for cell in cells]
        lines.append("| " + " | ".join([*map(markdown, names), *shown]) + " |")
    return "\n".join([*lines, "", *(html.escape(note, quote=False) for note in grid.notes)]) + "\n"


def markdown(text: str) -> str:
    """Text that a Markdown table shows as it stands: no column more, no tag."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


_TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "–": "--", "±": r"$\pm$",
        "†": r"$^\dagger$", "‡": r"$^\ddagger$", "²": r"$^2$", "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "{": r"\{", "}": r"\}", "\\": r"\textbackslash{}"}  # fmt: skip


def tex(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return re.sub("|".join(map(re.escape, _TEX)), lambda found: _TEX[found.group()], text)


def to_latex(grid: ResultGrid) -> str:
    """The grid as a LaTeX `tabular` (packages booktabs) with its notes as paragraphs."""
    lines = [r"\begin{tabular}{ll" + "l" * len(grid.columns) + "}", r"\toprule"]
    head = [*grid.names, *grid.columns]
    lines += [" & ".join(map(tex, head)) + r" \\", r"\midrule"]
    for names, cells in _lines(grid):
        shown = [
            rf"\textbf{{{tex(_marked(cell))}}}" if cell.bold else tex(_marked(cell))
            for cell in cells
        ]
        lines.append(" & ".join([*map(tex, names), *shown]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, "", *(rf"\par\smallskip {tex(note)}" for note in grid.notes)]) + "\n"


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; margin: 2em auto; max-width: 75em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 .6em; }
th, td { padding: .35em .5em; text-align: left; }
td span, tbody th { white-space: nowrap; }
thead th { border-bottom: 2px solid #444; vertical-align: bottom; }
tbody tr { border-bottom: 1px solid #ddd; }
tbody tr:hover { background: #f3f6fa; }
.few { color: #9a9a9a; }
p { margin: .3em 0; font-size: 13px; color: #444; }
"""


def _unbroken(cell: str) -> str:
    """A cell that a narrow window may break before its interval and nowhere else."""
    return " ".join(f"<span>{word}</span>" for word in cell.replace(" (", "\n(").split("\n"))


def html_table(grid: ResultGrid, caption: str) -> str:
    """The grid as an HTML table with its notes under it."""
    head = "".join(f"<th>{html.escape(c)}</th>" for c in [*grid.names, *grid.columns])
    body = []
    for names, cells in _lines(grid):
        shown = [_unbroken(html.escape(_marked(cell))) for cell in cells]
        shown = [f"<b>{s}</b>" if c.bold else s for s, c in zip(shown, cells, strict=True)]
        shown = [
            f"<span class='few'>{s}</span>" if c.gray else s
            for s, c in zip(shown, cells, strict=True)
        ]
        row = [f"<th scope='row'>{html.escape(names[0])}</th>", f"<td>{html.escape(names[1])}</td>"]
        body.append(f"<tr>{''.join(row)}{''.join(f'<td>{s}</td>' for s in shown)}</tr>")
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in grid.notes)
    return (
        f"<div class='wide'><table><caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + f"\n</tbody></table></div>{notes}"
    )


def to_html(grid: ResultGrid, title: str, below: str = "") -> str:
    """The grid as one HTML page that needs no other file; `below` is HTML under its notes."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"{html_table(grid, title)}{below}</body></html>\n"
    )
