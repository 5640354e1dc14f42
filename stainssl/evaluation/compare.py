"""Whether two encoders differ on the same patients, by the figures that the table shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import comb, prod
from typing import NamedTuple

import numpy as np
import pandas as pd

from stainssl.errors import StainsslError
from stainssl.evaluation.exchange import MAX_PATIENTS, exchange_p
from stainssl.evaluation.intervals import Estimate, combine, p_value, with_seeds
from stainssl.evaluation.metrics import (
    RESAMPLES,
    can_resample,
    estimate,
    patient_weights,
    within_bounds,
)
from stainssl.evaluation.predictions import FOLD, UNIT, ScoredUnits, read_scored

COLUMNS = [
    "first", "second", "metric", "difference", "low", "high",
    "p", "p_holm", "patients", "units", "seeds",
]  # fmt: skip

RESAMPLES_PER_COMPARISON = 80  # the least corrected p-value is then 0.025
MAX_RESAMPLES = 20_000  # for 250 comparisons; in larger tables the least one grows


def mean_over_seeds(
    metric: str, seeds: Sequence[ScoredUnits], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """A metric averaged over pretraining seeds, with limits over patients and seeds.

    Args:
        metric: a name of `METRICS`.
        seeds: one a seed, of the same units in the same order.
        resamples, seed: of the bootstrap, where the metric is resampled.
    """
    parts = _estimates(metric, seeds, resamples, seed)
    mean = combine(parts, [1 / len(parts)] * len(parts))
    within = with_seeds(mean, [[part.value for part in parts]])
    return within_bounds(metric, within)


def paired_difference(
    first: Sequence[ScoredUnits],
    second: Sequence[ScoredUnits],
    *,
    metric: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """First minus second on the same units, with limits over patients and seeds.

    Args:
        first, second: one entry per pretraining seed, whose metrics are averaged; all hold the
            same units in the same order.
        metric: a name of `METRICS`.

    Returns:
        Without limits where the metric or its spread is undefined.
    """
    one = first[0]
    for other in [*first, *second]:
        if not (np.array_equal(one.y, other.y) and np.array_equal(one.patient, other.patient)):
            raise ValueError("a paired comparison needs the same units in the same order")
    parts = _estimates(metric, [*first, *second], resamples, seed)
    return _difference(parts[: len(first)], parts[len(first) :])


def _difference(first: Sequence[Estimate], second: Sequence[Estimate]) -> Estimate:
    """First minus second, of estimates of the same patients, one a seed."""
    factors = [1 / len(first)] * len(first) + [-1 / len(second)] * len(second)
    sides = [[part.value for part in side] for side in (first, second)]
    return with_seeds(combine([*first, *second], factors), sides)


def _estimates(
    metric: str, sides: Sequence[ScoredUnits], resamples: int, seed: int
) -> list[Estimate]:
    one = sides[0]
    weights = patient_weights(one, resamples, seed) if can_resample(one) else None
    return [estimate(metric, side, weights=weights) for side in sides]


def least_p(scored: ScoredUnits) -> float:
    """The least two-sided p-value that an exact test of so many patients could give.

    For patients of one unit each: 2 over the number of ways to give the labels to the patients of
    each fold of a repeat. For patients with several units: 2 over the number of ways to exchange
    the two sides' predictions patient by patient.
    """
    if not scored.is_by_patient:
        return float(min(1.0, 2.0 ** (1 - scored.patients)))
    repeat = scored.ranked[0].repeat
    ways = [
        _arrangements(np.unique(scored.y[fold.unit], return_counts=True)[1].tolist())
        for fold in scored.ranked
        if fold.repeat == repeat
    ]
    return min(1.0, 2 / prod(ways))


def floor_p(metric: str, first: Sequence[ScoredUnits], second: Sequence[ScoredUnits]) -> float:
    """The lower bound of a difference's p-value.

    `least_p`; for AUROC of two classes and at most `MAX_PATIENTS` patients of one unit each the
    p-value of `exchange_p` too: there the limits alone are too often short of zero.

    Args:
        metric: that is compared.
        first, second: one entry per pretraining seed.
    """
    one, other = first[0], second[0]
    least = least_p(one)
    is_small = one.is_by_patient and one.patients <= MAX_PATIENTS and len(one.classes) == 2
    if metric != "auroc" or not is_small or len(first) + len(second) > 2:
        return least
    return max(least, exchange_p(one, other))


def _arrangements(counts: Sequence[int]) -> int:
    return prod(comb(sum(counts[: i + 1]), n) for i, n in enumerate(counts))


def resamples_for(comparisons: int) -> int:
    """How many resamples a family of comparisons needs to find any of them significant.

    A resampled p-value is at least 2 over the number of resamples, and Holm's correction multiplies
    it by the number of comparisons.
    """
    return min(max(RESAMPLES, RESAMPLES_PER_COMPARISON * comparisons), MAX_RESAMPLES)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values (Holm, 1979); NaN stays NaN."""
    values = np.asarray(p, float)
    out = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return out.tolist()


def shared_rows(predictions: Sequence[pd.DataFrame], level: str) -> list[pd.DataFrame]:
    """The test rows that all prediction tables hold, in one order.

    A row is a unit as one fold's model answered it, where the tables say `repeat` and `fold`.

    Raises:
        StainsslError: they share no unit, or their true classes differ.
    """
    keys = [*UNIT[level], *(c for c in FOLD if all(c in one for one in predictions))]
    tables = [one.set_index(keys).sort_index() for one in predictions]
    shared = tables[0].index
    for other in tables[1:]:
        shared = shared.intersection(other.index)
    tables = [one.loc[shared].reset_index() for one in tables]
    agree = [int((one["y"] == tables[0]["y"]).sum()) for one in tables]
    if not len(shared) or min(agree) < len(shared):
        raise StainsslError(
            f"Prediction tables of one task share {len(shared)} {level}s but agree on the label of"
            f" only {min(agree)}: they were made from different labels. Delete the older ones and"
            " run again."
        )
    return tables


def compare_two(
    first: Sequence[pd.DataFrame],
    second: Sequence[pd.DataFrame],
    level: str,
    *,
    metric: str = "auroc",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Difference of two encoders on the units that all their prediction tables hold.

    Args:
        first, second: predictions, one table per pretraining seed.

    Returns:
        `difference`, `low`, `high`, `p` (two-sided, of the interval that ends at zero, and never
        below `floor_p`), `patients`, `units`, `seeds` (of the side that has more).
    """
    return _compared(metric, *_sides([first, second], level, metric, resamples, seed))


class _Side(NamedTuple):
    """Answers on the units that all sides share, and their estimates, one a pretraining seed."""

    scored: list[ScoredUnits]
    estimates: list[Estimate]


def _sides(
    predictions: Sequence[Sequence[pd.DataFrame]],
    level: str,
    metric: str,
    resamples: int,
    seed: int,
) -> list[_Side]:
    tables = shared_rows([table for seeds in predictions for table in seeds], level)
    scored = [read_scored(rows, level) for rows in tables]
    estimates = _estimates(metric, scored, resamples, seed)
    ends = np.cumsum([len(seeds) for seeds in predictions]).tolist()
    starts = [0, *ends[:-1]]
    return [_Side(scored[i:j], estimates[i:j]) for i, j in zip(starts, ends, strict=True)]


def _compared(metric: str, first: _Side, second: _Side) -> dict[str, float]:
    found, one = _difference(first.estimates, second.estimates), first.scored[0]
    low, high = found.interval
    return {
        "difference": found.value, "low": low, "high": high,
        "p": p_value(found, floor_p(metric, first.scored, second.scored)),
        "patients": one.patients, "units": len(one.y),
        "seeds": max(len(first.scored), len(second.scored)),
    }  # fmt: skip


def _of_same_units(predictions: Sequence[Sequence[pd.DataFrame]], level: str) -> bool:
    tables = [table for seeds in predictions for table in seeds]
    keys = [*UNIT[level], *(c for c in FOLD if all(c in table for table in tables))]
    units = [table.set_index(keys).index for table in tables]
    return all(len(one) == len(units[0]) and not len(one.difference(units[0])) for one in units)


def compare_all(
    predictions: Mapping[str, Sequence[pd.DataFrame]],
    level: str,
    *,
    metric: str = "auroc",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Every pair of encoders (with their heads) of one task.

    Args:
        predictions: name → test predictions, one table per pretraining seed.

    Returns:
        `COLUMNS`; `p_holm` is NaN: the family is the table's, corrected once all tasks are known.
    """
    rows = [
        {"first": a, "second": b, "metric": metric, "p_holm": float("nan"), **found}
        for (a, b), found in _pairs(predictions, level, metric, resamples, seed)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _pairs(
    predictions: Mapping[str, Sequence[pd.DataFrame]],
    level: str, metric: str, resamples: int, seed: int,
) -> Iterator[tuple[tuple[str, str], dict[str, float]]]:  # fmt: skip
    """Every pair of names with its comparison; where all answer the same units, each once."""
    sides = {}
    if len(predictions) > 2 and _of_same_units(list(predictions.values()), level):
        found = _sides(list(predictions.values()), level, metric, resamples, seed)
        sides = dict(zip(predictions, found, strict=True))
    for a, b in combinations(predictions, 2):
        if sides:
            yield (a, b), _compared(metric, sides[a], sides[b])
        else:
            both = predictions[a], predictions[b]
            yield (a, b), compare_two(*both, level, metric=metric, resamples=resamples, seed=seed)
