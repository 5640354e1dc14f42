"""Metrics of predicted numbers, for many resamples of the patients at once.

Correlations are within folds, as other ranking figures are: every fold has a model of its own,
whose answers have a level of their own. What enters is how far a unit lies from its fold's mean, or
how far its rank from the middle of its fold; repeats are averaged. Errors are means over units,
whose answers are averaged over repeats.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np

from stainssl.evaluation.intervals import Estimate, bounded, drawn_estimate, rank_likeness
from stainssl.evaluation.metric import Metric, weighted_mean
from stainssl.evaluation.predictions import Floats, FoldScores, NumberUnits, ScoredUnits
from stainssl.evaluation.ranking import safe_divide

_BLOCK = 4_000_000  # weights worked on at once: some 100 MB with what is made of them
_NOTHING = 1e-12  # of a variance, below which numbers are all alike
Scores = Callable[[Floats, Floats], Floats]
log = logging.getLogger(__name__)


def weighted_ranks(numbers: Floats, weights: Floats) -> Floats:
    """Rank of each unit as a share of all, under each row of weights; equal numbers share one.

    Args:
        numbers: (n,).
        weights: (R, n) how often each unit is there.

    Returns:
        (R, n) in 0 … 1. With weights of one it is `(scipy.stats.rankdata(numbers) - 0.5) / n`.
    """
    _, group = np.unique(numbers, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0])
    own = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(own, axis=1) - own / 2
    total = own.sum(axis=1, keepdims=True)
    return safe_divide(middle, np.repeat(total, middle.shape[1], axis=1))[:, group]


def _as_they_are(numbers: Floats, weights: Floats) -> Floats:
    # Centred, so that sums of squares do not cancel.
    return np.broadcast_to(numbers - numbers.mean(), weights.shape)


def _products(
    fold: FoldScores, scored: ScoredUnits, scores: Scores, weights: Floats
) -> tuple[Floats, Floats, Floats]:
    # (R,) sums of products and of squares about the fold's weighted means: xy, xx, yy.
    own = weights[:, scored.patient[fold.unit]]
    x, y = scores(fold.p[:, 0], own), scores(scored.y[fold.unit].astype(float), own)
    total = own.sum(axis=1)
    mean_x, mean_y = (safe_divide((own * one).sum(axis=1), total)[:, None] for one in (x, y))
    x, y = np.nan_to_num(x - mean_x), np.nan_to_num(y - mean_y)
    return (own * x * y).sum(axis=1), (own * x * x).sum(axis=1), (own * y * y).sum(axis=1)


def _in_blocks(fold: FoldScores, scored: ScoredUnits, scores: Scores, weights: Floats) -> Floats:
    # (3, R): `_products`, some resamples at a time.
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
    # An answer that is the same for everybody ranks nobody: 0, as half of its pairs for an AUROC.
    scale = np.sqrt(said * true)
    found = safe_divide(products, np.where(scale > _NOTHING, scale, 0.0))
    return np.where(true > _NOTHING, np.nan_to_num(found), np.nan)


def ranked_folds(scored: ScoredUnits) -> Iterator[FoldScores]:
    """The folds that test units of different numbers."""
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
    # One less the squared error over that of saying the units' own mean.
    y = scored.y - scored.y.mean()
    error, mean, square = (
        weighted_mean(values, scored.patient, weights)
        for values in ((scored.p[:, 0] - scored.y) ** 2, y, y**2)
    )
    return 1 - safe_divide(error, square - mean**2)


def number_factor(value: float, likeness: float) -> float:
    r"""How much more a correlation varies for being cross-validated: :math:`1 + (1 - \rho^2)\,r`.

    As `intervals.cross_validation_factor`, whose AUROC of one half is a correlation of 0.

    Args:
        value: the correlation.
        likeness: r, the squared correlation of what is counted with the answer.
    """
    return 1 + (1 - value**2) * likeness


def _spread(of_ranks: bool) -> Callable[[ScoredUnits, float], float]:
    def factor(scored: ScoredUnits, value: float) -> float:
        folds = list(ranked_folds(scored))
        if len(folds) <= len({fold.repeat for fold in folds}):
            return 1.0
        units = float(np.mean([len(fold.unit) for fold in folds]))
        return number_factor(value, rank_likeness(units) if of_ranks else 1.0)

    return factor


def drawn_number(
    value: float, draws: Floats, patients: int, bounds: tuple[float, float]
) -> Estimate:
    """As `intervals.drawn_estimate`, within bounds; no limits where all resamples are alike."""
    known = draws[np.isfinite(draws)]
    if not len(known) or np.ptp(known) < _NOTHING:
        return Estimate(value, draws=draws, patients=patients)
    return bounded(drawn_estimate(value, draws, patients), *bounds)


_ANY = (-float("inf"), float("inf"))
NUMBER_METRICS: dict[str, Metric] = {
    "pearson": Metric(
        _correlation(_as_they_are), _is_ranked, spread=_spread(False), bounds=(-1.0, 1.0),
        is_share=False,
    ),
    "spearman": Metric(
        _correlation(weighted_ranks), _is_ranked, spread=_spread(True), bounds=(-1.0, 1.0),
        is_share=False,
    ),
    "mae": Metric(
        _absolute_error, _is_given, higher_is_better=False, bounds=(0.0, _ANY[1]), is_share=False
    ),
    "r2": Metric(_determination, _varies, bounds=(_ANY[0], 1.0), is_share=False),
}  # fmt: skip


def tell_undefined_numbers(group: str, scored: ScoredUnits) -> None:
    """Log why metrics of numbers are undefined."""
    assert isinstance(scored, NumberUnits)
    if not _varies(scored):
        log.warning("%s: all units have one value; correlations and R2 are undefined", group)
    elif not _is_ranked(scored):
        log.warning(
            "%s: no fold tests units of two values; correlations are undefined: use folds of"
            " several patients ('kind: cv')", group,
        )  # fmt: skip
