"""Metrics of regression, for many resamples of patients at once.

Correlations are computed within folds, like other ranking metrics, since every fold has a model of
its own, whose predictions have their own level. They are the correlations of the deviations from
the fold's mean, or of ranks within the fold; repeats are averaged. Errors are means over units,
whose predictions are averaged over repeats.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np

from stainssl.evaluation.intervals import (
    Estimate,
    bounded,
    drawn_estimate,
    squared_rank_correlation,
)
from stainssl.evaluation.metric import Metric, weighted_mean
from stainssl.evaluation.predictions import Floats, FoldScores, RegressionUnits, ScoredUnits
from stainssl.evaluation.ranking import safe_divide

_BLOCK = 4_000_000  # weights processed at once: about 100 MB with intermediate arrays
_NOTHING = 1e-12  # variances and ranges below this count as zero
Scores = Callable[[Floats, Floats], Floats]
log = logging.getLogger(__name__)


def weighted_ranks(numbers: Floats, weights: Floats) -> Floats:
    """Weighted ranks as shares of the total weight; ties have the mean rank.

    Args:
        numbers: (n,) values.
        weights: (R, n) weight of each unit in each resample.

    Returns:
        (R, n) in 0 … 1; with unit weights, `(scipy.stats.rankdata(numbers) - 0.5) / n`.
    """
    _, group = np.unique(numbers, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0])
    own = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(own, axis=1) - own / 2
    total = own.sum(axis=1, keepdims=True)
    return safe_divide(middle, np.repeat(total, middle.shape[1], axis=1))[:, group]


def _as_they_are(numbers: Floats, weights: Floats) -> Floats:
    # Centered, to avoid cancellation in sums of squares.
    return np.broadcast_to(numbers - numbers.mean(), weights.shape)


def _products(
    fold: FoldScores, scored: ScoredUnits, scores: Scores, weights: Floats
) -> tuple[Floats, Floats, Floats]:
    # (R,) weighted sums of xy, xx and yy about the fold's weighted means.
    own = weights[:, scored.patient[fold.unit]]
    x, y = scores(fold.p[:, 0], own), scores(scored.y[fold.unit].astype(float), own)
    total = own.sum(axis=1)
    mean_x, mean_y = (safe_divide((own * one).sum(axis=1), total)[:, None] for one in (x, y))
    x, y = np.nan_to_num(x - mean_x), np.nan_to_num(y - mean_y)
    return (own * x * y).sum(axis=1), (own * x * x).sum(axis=1), (own * y * y).sum(axis=1)


def _in_blocks(fold: FoldScores, scored: ScoredUnits, scores: Scores, weights: Floats) -> Floats:
    # (3, R): `_products`, computed in blocks of resamples.
    rows = max(_BLOCK // max(len(fold.unit), 1), 1)
    parts = [
        np.stack(_products(fold, scored, scores, weights[start : start + rows]))
        for start in range(0, len(weights), rows)
    ]
    return np.concatenate(parts, axis=1)


def _correlation(scores: Scores) -> Callable[[ScoredUnits, Floats], Floats]:
    def metric(scored: ScoredUnits, weights: Floats) -> Floats:
        sums: dict[int, Floats] = {}
        for fold in ranked_folds(scored):
            found = _in_blocks(fold, scored, scores, weights)
            sums[fold.repeat] = sums.get(fold.repeat, 0.0) + found
        repeats = [_quotient(*found) for found in sums.values()]
        defined = np.isfinite(repeats)
        return safe_divide(np.where(defined, repeats, 0.0).sum(axis=0), defined.sum(axis=0))

    return metric


def _quotient(products: Floats, said: Floats, true: Floats) -> Floats:
    # A constant prediction has correlation 0, as it has an AUROC of one half.
    scale = np.sqrt(said * true)
    found = safe_divide(products, np.where(scale > _NOTHING, scale, 0.0))
    return np.where(true > _NOTHING, np.nan_to_num(found), np.nan)


def ranked_folds(scored: ScoredUnits) -> Iterator[FoldScores]:
    """The folds whose test units differ in their true value."""
    for fold in scored.ranked:
        if np.ptp(scored.y[fold.unit]) > 0:
            yield fold


def _is_ranked(scored: ScoredUnits) -> bool:
    return any(ranked_folds(scored))


def _varies(scored: ScoredUnits) -> bool:
    return bool(np.ptp(scored.y) > 0)


def _is_given(scored: ScoredUnits) -> bool:
    return len(scored.y) > 0


def _absolute_error(scored: ScoredUnits, weights: Floats) -> Floats:
    return weighted_mean(np.abs(scored.p[:, 0] - scored.y), scored.patient, weights)


def _determination(scored: ScoredUnits, weights: Floats) -> Floats:
    # R²: one minus the squared error relative to that of predicting the units' mean.
    y = scored.y - scored.y.mean()
    error, mean, square = (
        weighted_mean(values, scored.patient, weights)
        for values in ((scored.p[:, 0] - scored.y) ** 2, y, y**2)
    )
    return 1 - safe_divide(error, square - mean**2)


def correlation_factor(value: float, squared_correlation: float) -> float:
    r"""Factor by which cross-validation increases the variance: :math:`1 + (1 - \rho^2)\,r`.

    This is `intervals.cross_validation_factor` with :math:`\rho = 2A - 1`.

    Args:
        value: the correlation :math:`\rho`.
        squared_correlation: r; `intervals.squared_rank_correlation` for ranks, 1 for numbers.
    """
    return 1 + (1 - value**2) * squared_correlation


def _variance_factor(of_ranks: bool) -> Callable[[ScoredUnits, float], float]:
    def factor(scored: ScoredUnits, value: float) -> float:
        folds = list(ranked_folds(scored))
        if len(folds) <= len({fold.repeat for fold in folds}):
            return 1.0
        units = float(np.mean([len(fold.unit) for fold in folds]))
        return correlation_factor(value, squared_rank_correlation(units) if of_ranks else 1.0)

    return factor


def drawn_number(
    value: float, draws: Floats, patients: int, bounds: tuple[float, float]
) -> Estimate:
    """As `intervals.drawn_estimate`, clipped to bounds; no limits if all resamples are equal."""
    known = draws[np.isfinite(draws)]
    if not len(known) or np.ptp(known) < _NOTHING:
        return Estimate(value, draws=draws, patients=patients)
    return bounded(drawn_estimate(value, draws, patients), *bounds)


_ANY = (-float("inf"), float("inf"))
REGRESSION_METRICS: dict[str, Metric] = {
    "pearson": Metric(
        _correlation(_as_they_are), _is_ranked, variance_factor=_variance_factor(False),
        bounds=(-1.0, 1.0), is_share=False,
    ),
    "spearman": Metric(
        _correlation(weighted_ranks), _is_ranked, variance_factor=_variance_factor(True),
        bounds=(-1.0, 1.0), is_share=False,
    ),
    "mae": Metric(
        _absolute_error, _is_given, higher_is_better=False, bounds=(0.0, _ANY[1]), is_share=False
    ),
    "r2": Metric(_determination, _varies, bounds=(_ANY[0], 1.0), is_share=False),
}  # fmt: skip


def log_undefined_regression(group: str, scored: ScoredUnits) -> None:
    """Log why metrics of numbers are undefined."""
    assert isinstance(scored, RegressionUnits)
    if not _varies(scored):
        log.warning("%s: all units have one value; correlations and R2 are undefined", group)
    elif not _is_ranked(scored):
        log.warning(
            "%s: no fold tests units of two values; correlations are undefined: use folds of"
            " several patients ('kind: cv')", group,
        )  # fmt: skip
