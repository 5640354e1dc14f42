"""Long table of all metrics of a benchmark, paired comparisons, and robustness as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stainssl.evaluation.compare import COLUMNS as COMPARISON_COLUMNS
from stainssl.evaluation.compare import (
    compare_all,
    holm,
    mean_over_seeds,
    resamples_for,
    shared_rows,
)
from stainssl.evaluation.predictions import read_scored
from stainssl.evaluation.table import LINEAR, Robustness, TaskResult

LONG_COLUMNS = [
    "encoder", "run", "head", "task", "metric", "group", "value", "low", "high",
    "patients", "units", "classes", "seen", "seeds",
]  # fmt: skip


def long_table(results: Sequence[TaskResult], robustness: Sequence[Robustness]) -> pd.DataFrame:
    """All metrics of a benchmark, one row per value, with `LONG_COLUMNS`.

    `seen` is the number of test patients used in pretraining; `head` is empty for robustness
    metrics. If an encoder has several seeds, each shown metric has a further row with their mean,
    where `seeds` is their number.
    """
    parts = [
        a.metrics.assign(encoder=a.encoder, run=a.run, head=a.head, task=a.task, seen=a.seen)
        for a in results
    ]
    seen = {(a.task, a.run): a.seen for a in results}
    for one in robustness:
        rows = one.metrics.assign(encoder=one.encoder, run=one.run, head="")
        parts.append(rows.assign(seen=[seen.get((task, one.run), 0) for task in rows["task"]]))
    rows = pd.concat([rows.assign(seeds=1) for rows in parts], ignore_index=True)
    means = pd.DataFrame(list(_seed_means(results)), columns=LONG_COLUMNS)
    every = pd.concat([rows, means], ignore_index=True) if len(means) else rows
    return every.reindex(columns=LONG_COLUMNS)


def _seed_means(results: Sequence[TaskResult]) -> Iterator[dict[str, Any]]:
    sides: dict[tuple[str, str, str], list[TaskResult]] = {}
    for result in results:
        sides.setdefault((result.task, result.encoder, result.head), []).append(result)
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
    """All robustness metrics as a tree: task → run → metric → group → estimate.

    Returns:
        JSON types. An estimate has `value`, `low`, `high` (null if undefined), `patients`, `units`.
    """
    tree: dict[str, Any] = {}
    for one in robustness:
        for row in one.metrics.to_dict("records"):
            metrics = tree.setdefault(row["task"], {}).setdefault(one.run, {})
            entry = {c: float(row[c]) if np.isfinite(row[c]) else None for c in _INTERVAL}
            entry |= {count: int(row[count]) for count in ("patients", "units")}
            metrics.setdefault(row["metric"], {})[row["group"]] = entry
    return tree


_INTERVAL = ("value", "low", "high")


def comparisons(
    results: Sequence[TaskResult], robustness: Sequence[Robustness], seed: int
) -> pd.DataFrame:
    """Compare all pairs of rows in every column of the table, with Holm's correction over all.

    Args:
        results: predictions of heads and probes.
        robustness: robustness metrics, with the predictions of the confounded test.
        seed: random seed of the resamples.

    Returns:
        `task`, `test` (a shown metric, or `confounded_auroc`) and `compare.COLUMNS`, where `first`
        and `second` are names of `side_name`. All seeds of an encoder are one side.
    """
    tests = list(_compared(results, robustness))
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
    """Comparisons of one column; `sides`: name → predictions, one table per seed."""

    task: str
    name: str
    level: str
    metric: str
    sides: dict[str, list[pd.DataFrame]]


def _compared(results: Sequence[TaskResult], robustness: Sequence[Robustness]) -> Iterator[_Test]:
    for task in dict.fromkeys(a.task for a in results):
        mine = [a for a in results if a.task == task]
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
    """Name in a comparison: `encoder + head`, or `encoder` for a linear probe."""
    return encoder if head in (LINEAR, "") else f"{encoder} + {head}"
