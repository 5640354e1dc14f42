"""Metrics of predicted survival, for many resamples of patients at once.

Concordance and AUROC rank the test units of one fold and repeat, like other ranking metrics; folds
are weighted by their comparable pairs, and repeats are averaged. Censoring is accounted for by
inverse probability of censoring weights. They come from the Kaplan–Meier estimate over all units
together, since follow-up does not depend on a fold's model, and are computed anew for every
resample.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stainssl.evaluation.follow_up import is_comparable
from stainssl.evaluation.intervals import cross_validation_factor, squared_rank_correlation
from stainssl.evaluation.metric import Metric, Resampled, weighted_share
from stainssl.evaluation.predictions import Floats, FoldScores, ScoredUnits, SurvivalUnits
from stainssl.evaluation.ranking import safe_divide, weighted_auroc

_BLOCK = 2_000_000  # weights processed at once: about 100 MB with intermediate arrays
_PAIRS = 2_000_000  # pairs processed at once
Bools = NDArray[np.bool_]
WeightedMetric = Callable[[SurvivalUnits, Floats], Floats]
log = logging.getLogger(__name__)


def _in_blocks(metric: WeightedMetric) -> Resampled:
    """Compute a metric in blocks of resamples."""

    def resampled(scored: ScoredUnits, weights: Floats) -> Floats:
        assert isinstance(scored, SurvivalUnits)
        rows = max(_BLOCK // max(len(scored.y), 1), 1)
        starts = range(0, len(weights), rows)
        return np.concatenate([metric(scored, weights[i : i + rows]) for i in starts])

    return resampled


# --- censoring ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class CensoringCurve:
    """Probability of still being followed up at a time, for each of R resamples.

    Attributes:
        at: (U,) increasing distinct times of the units.
        share: (R, U) probability of being followed up beyond each of them.
    """

    at: Floats
    share: Floats

    def until(self, times: Floats) -> Floats:
        """(R, T) probability of being followed up at least until each time."""
        return self._before(np.searchsorted(self.at, times, side="left"))

    def beyond(self, times: Floats) -> Floats:
        """(R, T) probability of being followed up beyond each time."""
        return self._before(np.searchsorted(self.at, times, side="right"))

    def _before(self, place: NDArray[np.int64]) -> Floats:
        ones = np.ones((len(self.share), 1))
        return np.concatenate([ones, self.share], axis=1)[:, place]


def censoring_kaplan_meier(time: Floats, event: Bools, weights: Floats) -> CensoringCurve:
    """Kaplan–Meier estimate of the censoring distribution; in ties, events precede censoring.

    Args:
        time: (N,) times of the units.
        event: (N,) whether the event occurred then.
        weights: (R, N) unit weights.
    """
    order = np.argsort(time, kind="stable")
    at, starts = np.unique(time[order], return_index=True)
    both = np.add.reduceat(weights[:, order], starts, axis=1)
    ended = np.add.reduceat((weights * event)[:, order], starts, axis=1)
    there = both[:, ::-1].cumsum(axis=1)[:, ::-1] - ended  # at risk of being censored
    left = np.nan_to_num(safe_divide(both - ended, there))
    return CensoringCurve(at, np.asarray(np.cumprod(1 - left, axis=1)))


def inverse(probability: Floats) -> Floats:
    """Reciprocal of a probability; 0 where it is 0."""
    return np.nan_to_num(safe_divide(np.ones_like(probability), probability))


# --- concordance -------------------------------------------------------------------------------


def pair_sums(
    time: Floats, event: Bools, risk: Floats, weights: Floats, factor: Floats | None = None
) -> tuple[Floats, Floats]:
    """Total weight of the correctly ranked comparable pairs, and of all comparable pairs.

    A pair is comparable if one unit had the event and the other is known to have outlived it:
    followed up for longer, or censored at that time. Equal risks count half.

    Args:
        time, event, risk: (n,) of the units.
        weights: (R, n) unit weights, at least 0.
        factor: (R, n) weight of a pair, by its unit with the event; None: 1.

    Returns:
        Two arrays (R,). Without `factor`, their quotient is Harrell's C, which equals
        `lifelines.utils.concordance_index` of -risk.
    """
    rows = np.flatnonzero(event)
    right, all_pairs = np.zeros((2, len(weights)))
    step = max(_PAIRS // max(len(time), 1), 1)
    for chunk in (rows[i : i + step] for i in range(0, len(rows), step)):
        later = time > time[chunk, None]
        later |= (time == time[chunk, None]) & ~event
        won = later * ((risk < risk[chunk, None]) + 0.5 * (risk == risk[chunk, None]))
        own = weights[:, chunk] if factor is None else weights[:, chunk] * factor[:, chunk]
        right += np.einsum("rc,rc->r", weights @ won.T, own)
        all_pairs += np.einsum("rc,rc->r", weights @ later.T.astype(float), own)
    return right, all_pairs


def _is_within(scored: SurvivalUnits) -> Bools:
    return scored.event & (scored.y < scored.times[-1])


def _comparable_folds(scored: SurvivalUnits, event: Bools) -> Iterator[FoldScores]:
    for fold in scored.ranked:
        if is_comparable(scored.y[fold.unit].astype(float), event[fold.unit]):
            yield fold


def _over_folds(parts: Iterator[tuple[int, Floats, Floats]], rows: int) -> Floats:
    """(R,) mean over repeats of the quotient of sums over folds; parts: (repeat, top, bottom)."""
    sums: dict[int, Floats] = {}
    for repeat, top, bottom in parts:
        sums[repeat] = sums.get(repeat, 0.0) + np.stack([top, bottom])
    if not sums:
        return np.full(rows, np.nan)
    repeats = np.stack([safe_divide(*both) for both in sums.values()])
    defined = np.isfinite(repeats)
    return safe_divide(np.where(defined, repeats, 0.0).sum(axis=0), defined.sum(axis=0))


def _harrell(scored: SurvivalUnits, weights: Floats) -> Floats:
    def parts() -> Iterator[tuple[int, Floats, Floats]]:
        for fold in _comparable_folds(scored, scored.event):
            own = weights[:, scored.patient[fold.unit]]
            time, event = scored.y[fold.unit].astype(float), scored.event[fold.unit]
            yield fold.repeat, *pair_sums(time, event, fold.p[:, 0], own)

    return _over_folds(parts(), len(weights))


def _censoring(scored: SurvivalUnits, weights: Floats) -> CensoringCurve:
    return censoring_kaplan_meier(scored.y.astype(float), scored.event, weights[:, scored.patient])


def _uno(scored: SurvivalUnits, weights: Floats) -> Floats:
    # Uno et al., Statistics in Medicine 2011.
    censoring, within = _censoring(scored, weights), _is_within(scored)

    def parts() -> Iterator[tuple[int, Floats, Floats]]:
        for fold in _comparable_folds(scored, within):
            own = weights[:, scored.patient[fold.unit]]
            time, event = scored.y[fold.unit].astype(float), scored.event[fold.unit]
            factor = inverse(censoring.until(time)) ** 2 * within[fold.unit]
            yield fold.repeat, *pair_sums(time, event, fold.p[:, 0], own, factor)

    return _over_folds(parts(), len(weights))


# --- at a time ---------------------------------------------------------------------------------


def _auroc_at(
    scored: SurvivalUnits, weights: Floats, censoring: CensoringCurve, at: float
) -> Floats:
    # (R,) cumulative/dynamic AUROC: events until `at` against units event-free beyond it.
    def parts() -> Iterator[tuple[int, Floats, Floats]]:
        for fold in scored.ranked:
            time = scored.y[fold.unit].astype(float)
            case, control = scored.event[fold.unit] & (time <= at), time > at
            if not (case.any() and control.any()):
                continue
            counts = np.where(case, inverse(censoring.until(time)), control.astype(float))
            own = weights[:, scored.patient[fold.unit]] * counts
            value, pairs = weighted_auroc(case, fold.p[:, 0], np.arange(len(time)), own)
            yield fold.repeat, np.where(pairs > 0, value, 0.0) * pairs, pairs

    return _over_folds(parts(), len(weights))


def auroc_by_time(scored: SurvivalUnits, weights: Floats) -> Floats:
    """(T, R) AUROC at each of `scored.times`; NaN where undefined.

    Cases are weighted by the inverse of their probability of being followed up (Uno et al., JASA
    2007).

    Args:
        scored: the units.
        weights: (R, P) patient weights.
    """
    censoring = _censoring(scored, weights)
    return np.stack([_auroc_at(scored, weights, censoring, at) for at in scored.times])


def _auroc_over_time(scored: SurvivalUnits, weights: Floats) -> Floats:
    each = auroc_by_time(scored, weights)
    defined = np.isfinite(each)
    return safe_divide(np.where(defined, each, 0.0).sum(axis=0), defined.sum(axis=0))


def brier_by_time(scored: SurvivalUnits, weights: Floats) -> Floats:
    """(T, R) Brier score at each of `scored.times` (Graf et al., Statistics in Medicine 1999)."""
    time, times = scored.y.astype(float), np.asarray(scored.times)
    censoring, own = _censoring(scored, weights), weights[:, scored.patient]
    until, beyond = inverse(censoring.until(time)), inverse(censoring.beyond(times))
    total = own.sum(axis=1)
    out = []
    for place, at in enumerate(times):
        survival = scored.p[:, 1 + place]
        gone, there = scored.event & (time <= at), time > at
        errors = (own * until) @ (gone * survival**2)
        errors += beyond[:, place] * (own @ (there * (1 - survival) ** 2))
        out.append(safe_divide(errors, total))
    return np.stack(out)


def _integrated_brier(scored: SurvivalUnits, weights: Floats) -> Floats:
    each, times = brier_by_time(scored, weights), np.asarray(scored.times)
    if len(times) == 1:
        return np.asarray(each[0])
    return np.asarray(np.trapezoid(each, times, axis=0) / (times[-1] - times[0]))


# --- the metrics -------------------------------------------------------------------------------


def _events(scored: ScoredUnits, weights: Floats) -> Floats:
    assert isinstance(scored, SurvivalUnits)
    units = np.ones(len(scored.y))
    return weighted_share(scored.event.astype(float), units, scored.patient, weights)


def _is_given(scored: ScoredUnits) -> bool:
    return len(scored.y) > 0


def _is_ranked(scored: ScoredUnits) -> bool:
    assert isinstance(scored, SurvivalUnits)
    return any(True for _ in _comparable_folds(scored, scored.event))


def _is_ranked_within(scored: ScoredUnits) -> bool:
    assert isinstance(scored, SurvivalUnits)
    return any(True for _ in _comparable_folds(scored, _is_within(scored)))


def _is_split(scored: ScoredUnits) -> bool:
    assert isinstance(scored, SurvivalUnits)
    return bool(np.isfinite(auroc_by_time(scored, np.ones((1, scored.patients)))).any())


def _variance_factor(scored: ScoredUnits, value: float) -> float:
    assert isinstance(scored, SurvivalUnits)
    folds = list(_comparable_folds(scored, scored.event))
    if len(folds) <= len({fold.repeat for fold in folds}):
        return 1.0
    units = float(np.mean([len(fold.unit) for fold in folds]))
    return cross_validation_factor(value, squared_rank_correlation(units))


SURVIVAL_METRICS: dict[str, Metric] = {
    "c_index": Metric(_in_blocks(_harrell), _is_ranked, variance_factor=_variance_factor),
    "c_index_uno": Metric(_in_blocks(_uno), _is_ranked_within, variance_factor=_variance_factor),
    "auroc_time": Metric(_in_blocks(_auroc_over_time), _is_split, variance_factor=_variance_factor),
    "integrated_brier": Metric(_in_blocks(_integrated_brier), _is_given, higher_is_better=False),
    "events": Metric(_events, _is_given),
}


def log_undefined_survival(group: str, scored: ScoredUnits) -> None:
    """Log why metrics of survival are undefined."""
    assert isinstance(scored, SurvivalUnits)
    if not scored.event.any():
        log.warning("%s: nobody has the event; concordance and AUROC are undefined", group)
    elif not _is_ranked(scored):
        log.warning(
            "%s: no fold has a comparable pair of test patients; concordance and AUROC are"
            " undefined: use folds of several patients ('kind: cv')", group,
        )  # fmt: skip
