"""Whether two encoders differ on the same patients: DeLong, paired bootstrap, Holm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from stainssl.errors import StainsslError
from stainssl.evaluation.metrics import (
    CONFIDENCE,
    METRICS,
    RESAMPLES,
    UNIT,
    Floats,
    ScoredUnits,
    average_repeats,
    can_resample,
    interval,
    patient_weights,
    scored_units,
)

COLUMNS = [
    "first", "second", "metric", "difference", "low", "high",
    "p", "p_holm", "p_delong", "patients", "units",
]  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """First minus second: the difference, its 95 % interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


UNDEFINED = Difference(*[float("nan")] * 4)


def _placements(positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    # Structural components of each AUROC: (K, positives) and (K, negatives).
    m, n = int(positive.sum()), int((~positive).sum())
    overall = rankdata(scores, axis=1)
    among_positive = rankdata(scores[:, positive], axis=1)
    among_negative = rankdata(scores[:, ~positive], axis=1)
    return (
        (overall[:, positive] - among_positive) / n,
        1 - (overall[:, ~positive] - among_negative) / m,
    )


def delong(positive: NDArray[np.bool_], first: Floats, second: Floats) -> Difference:
    """DeLong's test of two AUROCs on the same independent units.

    DeLong, DeLong and Clarke-Pearson, Biometrics 1988; by mid-ranks after Sun and Xu, IEEE Signal
    Processing Letters 2014.

    Args:
        positive: (N,) bool, two positives and two negatives at least.
        first, second: (N,) scores of the two.

    Returns:
        The difference of the AUROCs with a normal interval; p is 1 where the scores rank alike,
        and all is NaN with fewer than two units of a class.
    """
    if positive.sum() < 2 or (~positive).sum() < 2:
        return UNDEFINED
    of_positive, of_negative = _placements(positive, np.stack([first, second]))
    auroc = of_positive.mean(axis=1)
    covariance = np.cov(of_positive) / positive.sum() + np.cov(of_negative) / (~positive).sum()
    value = float(auroc[0] - auroc[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    error = np.sqrt(max(variance, 0.0))
    if error < 1e-12:
        return Difference(value, value, value, 1.0 if abs(value) < 1e-12 else 0.0)
    reach = norm.ppf((1 + CONFIDENCE) / 2) * error
    return Difference(value, value - reach, value + reach, float(2 * norm.sf(abs(value) / error)))


def bootstrap_p(differences: Floats) -> float:
    """Two-sided p-value of (R,) resampled differences: how often they lie beyond zero.

    One is added to both counts (Davison and Hinkley, 1997), so that no p-value is zero; a
    difference of exactly zero speaks for neither side.
    """
    defined = differences[np.isfinite(differences)]
    if not len(defined):
        return float("nan")
    beyond = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(defined) + 1)))


def paired_bootstrap(
    first: Sequence[ScoredUnits],
    second: Sequence[ScoredUnits],
    *,
    metric: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """First minus second on the same units, patients resampled alike for both.

    Args:
        first, second: one entry per pretraining seed, whose metrics are averaged; all hold the
            same units in the same order.
        metric: a name of `METRICS`.

    Returns:
        The difference with its percentile interval; NaN where the metric or spread is undefined.
    """
    one = first[0]
    for other in [*first, *second]:
        if not (np.array_equal(one.y, other.y) and np.array_equal(one.patient, other.patient)):
            raise ValueError("a paired comparison needs the same units in the same order")
    known = METRICS[metric]
    if known.needs_two_classes and len(one.present()) < 2:
        return UNDEFINED
    value = float(
        np.mean([known.value(s) for s in first]) - np.mean([known.value(s) for s in second])
    )
    if not can_resample(one):
        return Difference(value, float("nan"), float("nan"), float("nan"))
    weights = patient_weights(one, resamples, seed)
    means = (
        np.mean([known.resampled(s, weights) for s in side], axis=0) for side in (first, second)
    )
    drawn = next(means) - next(means)
    return Difference(value, *interval(drawn), bootstrap_p(drawn))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values (Holm, 1979); NaN stays NaN."""
    values = np.asarray(p, float)
    out = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return out.tolist()


def shared_units(predictions: Sequence[pd.DataFrame], level: str) -> list[pd.DataFrame]:
    """The units that all prediction tables hold, averaged over repeats, in one order.

    Raises:
        StainsslError: they share no unit, or their true classes differ.
    """
    units = [average_repeats(p, level).set_index(UNIT[level]).sort_index() for p in predictions]
    shared = units[0].index
    for other in units[1:]:
        shared = shared.intersection(other.index)
    units = [one.loc[shared].reset_index() for one in units]
    agree = [int((one["y"] == units[0]["y"]).sum()) for one in units]
    if not len(shared) or min(agree) < len(shared):
        raise StainsslError(
            f"The prediction tables of one task share {len(shared)} {level}s and agree on the class"
            f" of {min(agree)}: they were made from different labels. Delete the older ones and run"
            " again."
        )
    return units


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
        `difference`, `low`, `high`, `p` (paired patient bootstrap), `p_delong` (binary AUROC of one
        seed with one unit per patient; NaN otherwise), `patients`, `units`.
    """
    units = [scored_units(u) for u in shared_units([*first, *second], level)]
    a, b = units[: len(first)], units[len(first) :]
    drawn = paired_bootstrap(a, b, metric=metric, resamples=resamples, seed=seed)
    one, p_delong = a[0], float("nan")
    independent = one.patients == len(one.y) and len(one.classes) == 2
    if metric == "auroc" and independent and len(units) == 2:
        p_delong = delong(one.y == 1, one.p[:, 1], b[0].p[:, 1]).p
    return {
        "difference": drawn.value, "low": drawn.low, "high": drawn.high, "p": drawn.p,
        "p_delong": p_delong, "patients": one.patients, "units": len(one.y),
    }  # fmt: skip


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
        {"first": a, "second": b, "metric": metric, "p_holm": float("nan")}
        | compare_two(
            predictions[a], predictions[b], level, metric=metric, resamples=resamples, seed=seed
        )
        for a, b in combinations(predictions, 2)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)
