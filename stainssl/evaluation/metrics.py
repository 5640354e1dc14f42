"""Metrics of predictions, each with an interval over patients.

Ranking metrics compare pairs within a fold and repeat (`ranking`). Metrics of predicted classes and
of probabilities are computed over units, whose probabilities are averaged over repeats. Intervals
(`intervals`) are in closed form if every patient is one unit and the metric has one, otherwise
patients are resampled. A resample is a row of patient weights: every tile or slide has the weight
of its patient, and each metric is computed exactly for many rows at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stainssl.evaluation.class_metrics import CLASS_METRICS, RULE_OUT_SHARES, SHARES
from stainssl.evaluation.folds import MAX_CUTS
from stainssl.evaluation.intervals import UNDEFINED, Estimate, bounded, drawn_estimate
from stainssl.evaluation.metric import Metric
from stainssl.evaluation.ordinal_metrics import ORDINAL_METRICS
from stainssl.evaluation.predictions import (
    Floats,
    OrdinalUnits,
    RegressionUnits,
    ScoredUnits,
    SurvivalUnits,
)
from stainssl.evaluation.regression_metrics import REGRESSION_METRICS, drawn_number
from stainssl.evaluation.survival_metrics import SURVIVAL_METRICS

RESAMPLES = 2000
SHARED = ("accuracy", "balanced_accuracy", "f1_macro", "brier")  # also metrics of ordered classes
METRICS: dict[str, Metric] = {
    **CLASS_METRICS, **REGRESSION_METRICS, **ORDINAL_METRICS, **SURVIVAL_METRICS,
}  # fmt: skip


def _of_classes(scored: ScoredUnits) -> list[str]:
    absent: set[str] = set()
    if len(scored.classes) != 2:
        absent |= set(SHARES) | set(RULE_OUT_SHARES)
    if scored.rule_out is None:
        absent |= set(RULE_OUT_SHARES)
    return [name for name in CLASS_METRICS if name not in absent]


def _of_order(scored: ScoredUnits) -> list[str]:
    beyond = {f"auroc_cut{place}" for place in range(len(scored.classes), MAX_CUTS + 1)}
    return [name for name in (*ORDINAL_METRICS, *SHARED) if name not in beyond]


METRICS_OF: dict[type[ScoredUnits], Callable[[ScoredUnits], list[str]]] = {
    ScoredUnits: _of_classes,
    RegressionUnits: lambda scored: list(REGRESSION_METRICS),
    OrdinalUnits: _of_order,
    SurvivalUnits: lambda scored: list(SURVIVAL_METRICS),
}


def metrics_of(scored: ScoredUnits) -> list[str]:
    """Names of the metrics of such units; those of a positive class need two classes."""
    return METRICS_OF[type(scored)](scored)


def patient_weights(scored: ScoredUnits, resamples: int, seed: int) -> Floats:
    """Draw patients with replacement, within `ScoredUnits.strata`.

    Strata are classes if every patient has a single class, so that a resample keeps the sizes of
    the classes.

    Returns:
        (R, P) number of times that each patient is drawn, as float; every row sums to P.
    """
    rng = np.random.default_rng(seed)
    strata = scored.strata
    weights = np.zeros((resamples, scored.patients))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        share = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), share, size=resamples)
    return weights


def can_resample(scored: ScoredUnits) -> bool:
    """Whether patients can be resampled: at least two in every stratum."""
    return scored.patients >= 2 and bool(np.unique(scored.strata, return_counts=True)[1].min() > 1)


def estimate(
    metric: str,
    scored: ScoredUnits,
    *,
    weights: Floats | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A metric with its limits over patients.

    The estimate is in closed form if the metric has one and every patient is one unit; otherwise
    patients are resampled. Cross-validated ranking metrics vary more than those of independent
    predictions, and their resamples are spread accordingly (`cross_validation_factor`).

    Args:
        metric: key of `METRICS`.
        scored: the units.
        weights: (R, P) as returned by `patient_weights`, to share them between metrics; None: drawn
            here.
        resamples, seed: number of resamples and random seed of the draws.

    Returns:
        `UNDEFINED` if the metric is undefined; limits are NaN if patients cannot be resampled or
        all resamples are alike.
    """
    known = METRICS[metric]
    if not known.is_defined(scored):
        return UNDEFINED
    if known.exact is not None and scored.is_by_patient:
        return known.exact(scored)
    value = known.value(scored)
    if not can_resample(scored):
        return Estimate(value)
    if weights is None:
        weights = patient_weights(scored, resamples, seed)
    draws = known.resampled(scored, weights)
    if known.variance_factor is not None:
        draws = value + (draws - value) * known.variance_factor(scored, value) ** 0.5
    if not known.is_share:
        return drawn_number(value, draws, scored.patients, known.bounds)
    return drawn_estimate(value, draws, scored.patients)


def confidence_interval(
    metric: str, scored: ScoredUnits, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a metric over patients, within the bounds of the metric.

    Args:
        metric, scored, resamples, seed: as in `estimate`.

    Returns:
        (low, high); NaN if the metric is undefined or patients cannot be resampled.
    """
    found = estimate(metric, scored, resamples=resamples, seed=seed)
    low, high = within_bounds(metric, found).interval
    return low, high


def within_bounds(metric: str, found: Estimate) -> Estimate:
    """Clip the limits of an estimate to the bounds of its metric.

    Resamples that are spread for cross-validation may exceed them. Not for differences, which
    have other bounds.
    """
    least, most = METRICS[metric].bounds
    return bounded(found, least, most) if least <= found.value <= most else found
