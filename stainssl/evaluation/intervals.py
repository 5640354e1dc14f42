"""Confidence intervals and tests for few patients.

An `Estimate` is a value with limits at any confidence level. There are two kinds: by inverting a
test whose variance is that under the hypothesis (AUROC, proportions of patients), which also gives
an interval for a perfect value; and by resampling patients (all other metrics). Means and paired
differences of estimates are computed by the method of variance estimates recovery (MOVER).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from stainssl.evaluation.predictions import Floats
from stainssl.evaluation.ranking import Pairs

CONFIDENCE = 0.95
Z = float(special.ndtri((1 + CONFIDENCE) / 2))
Limits = Callable[[float], tuple[float, float]]
NAN = float("nan")
_LARGEST_Z = 8.0  # beyond it p-values are below 1e-15


def _unknown(z: float) -> tuple[float, float]:
    del z
    return NAN, NAN


@dataclass(frozen=True)
class Estimate:
    """A value with confidence limits, and its variation with the patients.

    Attributes:
        value: the point estimate.
        limits: normal deviate (1.96 for 95 %) → (low, high); NaN if unknown.
        influence: (P,) derivative with respect to each patient's weight; None if resampled.
        draws: (R,) resampled values; None if not resampled.
        patients: number of patients that were resampled.
    """

    value: float
    limits: Limits = _unknown
    influence: Floats | None = None
    draws: Floats | None = None
    patients: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % limits."""
        return self.limits(Z)


UNDEFINED = Estimate(NAN)


# --- by inverting a test ----------------------------------------------------------------------


def _root(distance: Callable[[float], float], inside: float, outside: float) -> float:
    # Bisection between `inside`, where the distance is at most zero, and `outside`.
    if distance(outside) <= 0:
        return outside
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if distance(middle) <= 0 else (inside, middle)
    return inside


def auroc_estimate(pairs: Pairs, squared_correlation: float = 0.0) -> Estimate:
    r"""AUROC with the interval of a test whose variance is that under the hypothesis.

    Limits are the :math:`\theta` with :math:`|A - \theta| = z \sqrt{V(\theta)}`, where

    .. math::
        V(\theta) = \theta(1-\theta) \sum_{ij} c_{ij}^2 + (\tfrac{Q_1 + Q_2}{2} - \theta^2)\, S,
        \quad Q_1 = \tfrac{\theta}{2-\theta}, \quad Q_2 = \tfrac{2\theta^2}{1+\theta}

    (Newcombe, Statistics in Medicine 2006, method 5, after Hanley and McNeil 1982), for pairs of
    any weights :math:`c_{ij}`; :math:`S` is the sum of products of weights of pairs that share one
    patient. At one half this is the variance of the Mann–Whitney test. :math:`V` is multiplied by
    `cross_validation_factor`.

    Args:
        pairs: of one class and the rest.
        squared_correlation: r of `cross_validation_factor`; 0 without cross-validation.
    """

    def variance(t: float) -> float:
        q = (t / (2 - t) + 2 * t**2 / (1 + t)) / 2
        own = t * (1 - t) * pairs.squares + (q - t**2) * pairs.shared
        return own * cross_validation_factor(t, squared_correlation)

    def limits(z: float) -> tuple[float, float]:
        def distance(t: float) -> float:
            return (pairs.value - t) ** 2 - z**2 * variance(t)

        return _root(distance, pairs.value, 0.0), _root(distance, pairs.value, 1.0)

    return Estimate(pairs.value, limits, pairs.influence)


def cross_validation_factor(value: float, squared_correlation: float) -> float:
    r"""Factor by which cross-validation increases the variance of a metric.

    Two test patients of different folds each trained the other's model. If the models learnt only
    noise, both predictions depend on the one similarity between these patients, and the variance
    of a sum of scores is twice that of independent predictions. If they learnt a signal, a
    prediction depends on the patient's own features. The factor :math:`1 + 4 A (1 - A)\,r` is
    :math:`1 + r` at one half and 1 for a perfect value.

    Args:
        value: the AUROC, or the (balanced) accuracy.
        squared_correlation: r, the squared correlation between the score and its rank
            (`squared_rank_correlation`) or the predicted class (`SQUARED_THRESHOLD_CORRELATION`).
    """
    return 1 + 4 * value * (1 - value) * squared_correlation


# Squared correlation of a normal score with its side of a threshold.
SQUARED_THRESHOLD_CORRELATION = 2 / np.pi


def squared_rank_correlation(units: float) -> float:
    """Squared correlation of a normal score, centered by fold, with its rank among m units.

    It is 2/π for a pair, whose rank is the sign of the difference, and 3/π for many units.

    Args:
        units: m, the number of units ranked together.
    """
    return 3 * units / (np.pi * (units + 1))


def share_estimate(hits: Floats, of: Floats) -> Estimate:
    """Proportion of independent patients with Wilson's interval (JASA 1927).

    Args:
        hits: (P,) 1 for patients in the numerator.
        of: (P,) 1 for patients in the denominator.

    Returns:
        `UNDEFINED` if the denominator is 0.
    """
    n, k = float(of.sum()), float((hits * of).sum())
    if not n:
        return UNDEFINED
    share = k / n

    def limits(z: float) -> tuple[float, float]:
        centre = (k + z**2 / 2) / (n + z**2)
        reach = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
        return max(0.0, centre - reach), min(1.0, centre + reach)

    return Estimate(share, limits, (hits - share) * of / n)


def widened(estimate: Estimate, factor: float) -> Estimate:
    """The same value with limits for a variance that is `factor` times as large."""
    return replace(estimate, limits=lambda z: estimate.limits(z * factor**0.5))


def bounded(estimate: Estimate, least: float, most: float) -> Estimate:
    """The same value with limits clipped to `least` and `most`."""

    def limits(z: float) -> tuple[float, float]:
        low, high = estimate.limits(z)
        return max(low, least), min(high, most)

    return replace(estimate, limits=limits)


# --- by resampling patients -------------------------------------------------------------------


def drawn_estimate(
    value: float, draws: Floats, patients: int, *, is_share: bool = True
) -> Estimate:
    """A value with the expanded percentile interval of its resamples.

    A percentile interval is too narrow because the variance is divided by n instead of n - 1, and
    because a normal deviate is used instead of Student's t. Percentiles further out correct both
    (Hesterberg, The American Statistician 2015).

    Args:
        value: the point estimate.
        draws: (R,) resampled values; NaN where undefined.
        patients: number of patients that were resampled.
        is_share: whether the value lies between 0 and 1, which a difference does not.

    Returns:
        Limits are NaN with fewer than two patients, if fewer than half of the resamples are
        defined, or if all are equal. If a share is 0 or 1 in all resamples, they are Wilson's for
        a proportion of that many patients.
    """
    unknown = Estimate(value, draws=draws, patients=patients)
    defined = np.sort(draws[np.isfinite(draws)])
    if len(defined) * 2 < len(draws) or not len(defined) or patients < 2:
        return unknown
    if defined[-1] - defined[0] < 1e-12:
        if not is_share or not min(abs(value), abs(value - 1)) < 1e-12:
            return unknown
        same = share_estimate(np.full(patients, round(value)), np.ones(patients))
        return replace(unknown, limits=same.limits)

    def limits(z: float) -> tuple[float, float]:
        student = -special.stdtrit(patients - 1, special.ndtr(-z))
        tail = float(special.ndtr(-student * np.sqrt(patients / (patients - 1))))
        low, high = np.quantile(defined, [tail, 1 - tail])
        return float(low), float(high)

    return Estimate(value, limits, draws=draws, patients=patients)


# --- combining --------------------------------------------------------------------------------


def combine(
    parts: Sequence[Estimate], factors: Sequence[float], *, independent: bool = False
) -> Estimate:
    r"""Weighted sum of estimates for the same patients.

    If all are resampled, the resamples are summed. Otherwise limits are computed by MOVER (Zou and
    Donner, Statistics in Medicine 2008; Zou and Yue, 2013, for AUROCs):

    .. math::
        L = \hat\theta - \sqrt{\textstyle\sum_{kl} \rho_{kl} d_k d_l}

    where :math:`d_k` is the factor times the distance to the limit on that side, and :math:`\rho`
    the correlation of the patients' influences. A part without influence (a perfect value) is
    assumed to have correlation 1 with parts of the same sign, and 0 with the others.

    Args:
        parts: at least one estimate.
        factors: one per part.
        independent: whether the parts have no patient in common.

    Returns:
        Limits are NaN if neither method applies to all parts.
    """
    w = np.asarray(factors, float)
    value = float(w @ [part.value for part in parts])
    if not np.isfinite(value):
        return UNDEFINED
    if (drawn := [part.draws for part in parts if part.draws is not None]) and len(drawn) == len(w):
        draws, is_share = w @ np.stack(drawn), bool((w >= 0).all())
        return drawn_estimate(value, draws, parts[0].patients, is_share=is_share)
    if any(part.influence is None for part in parts):
        return Estimate(value)
    influence = np.stack([part.influence for part in parts if part.influence is not None])
    rho = np.eye(len(w)) if independent else _correlations(influence, w)

    def limits(z: float) -> tuple[float, float]:
        ends = np.array([part.limits(z) for part in parts])
        values = np.array([part.value for part in parts])
        below, above = values - ends[:, 0], ends[:, 1] - values
        reach = []
        for first, second in ((below, above), (above, below)):
            d = w * np.where(w > 0, first, second)
            reach.append(float(np.sqrt(max(d @ rho @ d, 0.0))))
        return value - reach[0], value + reach[1]

    return Estimate(value, limits, w @ influence)


def _correlations(influence: Floats, factors: Floats) -> Floats:
    norm = np.sqrt((influence**2).sum(axis=1))
    product = norm[:, None] * norm[None]
    known = product > 1e-12
    rho = np.divide(influence @ influence.T, product, out=np.zeros_like(product), where=known)
    together = np.sign(factors)[:, None] * np.sign(factors)[None] > 0
    return np.where(known, rho, together.astype(float))


def with_seeds(estimate: Estimate, sides: Sequence[Sequence[float]]) -> Estimate:
    """Widen the limits of a mean over pretraining seeds by the variation between seeds.

    Patients and seeds are independent sources of error, so that the squares of their distances to
    the limits are added (MOVER). That of the seeds is Student's t times the standard error of
    their mean.

    Args:
        estimate: of the mean over seeds, or of a difference of two such means.
        sides: the values under each seed, for each side; a single seed adds nothing.
    """
    several = [np.asarray(side, float) for side in sides if len(side) > 1]
    if not several:
        return estimate

    def limits(z: float) -> tuple[float, float]:
        low, high = estimate.limits(z)
        tail = special.ndtr(-z)
        errors = [
            -special.stdtrit(len(side) - 1, tail) * side.std(ddof=1) / np.sqrt(len(side))
            for side in several
        ]
        seeds = float(np.sum(np.square(errors)))
        value = estimate.value
        return (
            value - float(np.sqrt((value - low) ** 2 + seeds)),
            value + float(np.sqrt((high - value) ** 2 + seeds)),
        )

    return replace(estimate, limits=limits)


def p_value(difference: Estimate, floor: float = 0.0) -> float:
    """Two-sided p-value: one minus the confidence level at which zero is a limit.

    Args:
        difference: estimate that is 0 under the null hypothesis.
        floor: lower bound of the p-value.

    Returns:
        1 if the difference is zero; otherwise NaN if it has no limits. For R resamples it is at
        least 2 / (R + 1) (Davison and Hinkley, 1997).
    """
    if abs(difference.value) < 1e-12:
        return 1.0
    if not np.isfinite(difference.value) or not np.isfinite(difference.interval).all():
        return NAN
    if difference.draws is not None:
        floor = max(floor, 2 / (len(difference.draws) + 1))

    def holds_zero(z: float) -> bool:
        low, high = difference.limits(z)
        return low <= 0 <= high

    inside, outside = 0.0, _LARGEST_Z
    for _ in range(40):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if holds_zero(middle) else (middle, outside)
    return float(min(1.0, max(2 * special.ndtr(-outside), floor)))
