"""Paired comparisons of encoders on the same patients, by the metrics of the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import comb, prod
from typing import NamedTuple

import numpy as np
import pandas as pd

from stainssl.errors import StainsslError
from stainssl.evaluation.intervals import Estimate, combine, p_value, with_seeds
from stainssl.evaluation.metrics import (
    RESAMPLES,
    can_resample,
    estimate,
    patient_weights,
    within_bounds,
)
from stainssl.evaluation.permutation import MAX_PATIENTS, permutation_p
from stainssl.evaluation.predictions import FOLD, UNIT, ScoredUnits, read_scored

COLUMNS = [
    "first", "second", "metric", "difference", "low", "high",
    "p", "p_holm", "patients", "units", "seeds",
]  # fmt: skip

RESAMPLES_PER_COMPARISON = 80  # the lowest possible corrected p-value is then 0.025
MAX_RESAMPLES = 20_000  # for 250 comparisons; with more, the lowest p-value increases


def mean_over_seeds(
    metric: str, seeds: Sequence[ScoredUnits], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean of a metric over pretraining seeds, with limits over patients and seeds.

    Args:
        metric: key of `METRICS`.
        seeds: predictions under each seed, for the same units in the same order.
        resamples, seed: number of resamples and random seed, if the metric is resampled.
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
    """Difference of a metric (first minus second), with limits over patients and seeds.

    Args:
        first, second: predictions under each pretraining seed, whose metrics are averaged; all for
            the same units in the same order.
        metric: key of `METRICS`.
        resamples, seed: number of resamples and random seed, if the metric is resampled.

    Returns:
        Limits are NaN if the metric is undefined or patients cannot be resampled.

    Raises:
        ValueError: units, patients or their order differ.
    """
    one = first[0]
    for other in [*first, *second]:
        if not (np.array_equal(one.y, other.y) and np.array_equal(one.patient, other.patient)):
            raise ValueError("a paired comparison needs the same units in the same order")
    parts = _estimates(metric, [*first, *second], resamples, seed)
    return _difference(parts[: len(first)], parts[len(first) :])


def _difference(first: Sequence[Estimate], second: Sequence[Estimate]) -> Estimate:
    """First minus second; estimates for the same patients, one per seed."""
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
    """Lowest two-sided p-value that an exact test with these patients could give.

    If every patient is one unit: 2 divided by the number of ways to assign the labels to the
    patients of each fold of a repeat. Otherwise: 2 divided by the number of ways to exchange the
    predictions of both sides patient by patient.
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
    """Lower bound of the p-value of a difference.

    This is `least_p`. For AUROC of two classes, one seed per side, and at most `MAX_PATIENTS`
    patients of one unit each, it is also at least `permutation_p`: with so few patients, the limits
    alone exclude zero too often.

    Args:
        metric: the metric compared.
        first, second: predictions under each pretraining seed.
    """
    one, other = first[0], second[0]
    least = least_p(one)
    is_small = one.is_by_patient and one.patients <= MAX_PATIENTS and len(one.classes) == 2
    if metric != "auroc" or not is_small or len(first) + len(second) > 2:
        return least
    return max(least, permutation_p(one, other))


def _arrangements(counts: Sequence[int]) -> int:
    return prod(comb(sum(counts[: i + 1]), n) for i, n in enumerate(counts))


def resamples_for(comparisons: int) -> int:
    """Number of resamples with which a corrected p-value can be below 0.05.

    A resampled p-value is at least 2 divided by the number of resamples, and Holm's correction
    multiplies it by the number of comparisons.
    """
    return min(max(RESAMPLES, RESAMPLES_PER_COMPARISON * comparisons), MAX_RESAMPLES)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values (Holm, 1979); NaN is ignored and kept."""
    values = np.asarray(p, float)
    out = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return out.tolist()


def shared_rows(predictions: Sequence[pd.DataFrame], level: str) -> list[pd.DataFrame]:
    """Rows that all prediction tables have in common, in the same order.

    Rows are matched by unit, and by `repeat` and `fold` if all tables have them.

    Raises:
        StainsslError: no unit in common, or different labels.
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
    """Compare two encoders on the units that all their prediction tables have in common.

    Args:
        first, second: predictions, one table per pretraining seed.
        level: `tile`, `slide` or `patient`.
        metric: key of `METRICS`.
        resamples, seed: number of resamples and random seed, if the metric is resampled.

    Returns:
        `difference` (first minus second), `low`, `high` (95 %), `p` (two-sided; one minus the
        confidence of the interval that ends at zero, and at least `floor_p`), `patients`, `units`,
        `seeds` (of the side with more).

    Raises:
        StainsslError: no unit in common, or different labels.
    """
    return _compared(metric, *_sides([first, second], level, metric, resamples, seed))


class _Side(NamedTuple):
    """Predictions for the units that all sides share, and estimates; one per pretraining seed."""

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
    """Compare all pairs of encoders (with their heads) of one task.

    Args:
        predictions: name → test predictions, one table per pretraining seed.
        level, metric, resamples, seed: as in `compare_two`.

    Returns:
        One row per pair with `COLUMNS`. `p_holm` is NaN, since the correction is over all tasks of
        the table.
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
    """Compare all pairs; each side is estimated only once if all have the same units."""
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
