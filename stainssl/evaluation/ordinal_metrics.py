"""Metrics of ordered classes: the AUROC of each cut, and quadratic weighted kappa."""

from __future__ import annotations

import numpy as np

from stainssl.evaluation.class_metrics import CLASS_METRICS, confusion, has_two_classes
from stainssl.evaluation.folds import MAX_CUTS
from stainssl.evaluation.intervals import Estimate, combine
from stainssl.evaluation.metric import Metric
from stainssl.evaluation.predictions import Floats, OrdinalUnits, ScoredUnits
from stainssl.evaluation.ranking import safe_divide


def _of_cut(metric: Metric, place: int) -> Metric:
    """A two-class metric of a cut between ordered classes."""
    exact, variance_factor = metric.exact, metric.variance_factor
    assert exact is not None
    assert variance_factor is not None

    def is_defined(scored: ScoredUnits) -> bool:
        return place + 1 < len(scored.classes) and metric.is_defined(_cut_of(scored, place))

    return Metric(
        lambda scored, weights: metric.resampled(_cut_of(scored, place), weights),
        is_defined,
        lambda scored: exact(_cut_of(scored, place)),
        lambda scored, value: variance_factor(_cut_of(scored, place), value),
    )


def _cut_of(scored: ScoredUnits, place: int) -> ScoredUnits:
    assert isinstance(scored, OrdinalUnits)
    return scored.cut(place)


CUT_METRICS = {
    f"auroc_cut{place + 1}": _of_cut(CLASS_METRICS["auroc"], place) for place in range(MAX_CUTS)
}


def _cuts(scored: ScoredUnits) -> list[Metric]:
    return [metric for metric in CUT_METRICS.values() if metric.is_defined(scored)]


def _cuts_resampled(scored: ScoredUnits, weights: Floats) -> Floats:
    return np.mean([cut.resampled(scored, weights) for cut in _cuts(scored)], axis=0)


def _cuts_exact(scored: ScoredUnits) -> Estimate:
    each = [cut.exact(scored) for cut in _cuts(scored) if cut.exact is not None]
    return combine(each, [1 / len(each)] * len(each))


def _cuts_variance_factor(scored: ScoredUnits, value: float) -> float:
    del value
    return max(
        cut.variance_factor(scored, 0.0) for cut in _cuts(scored) if cut.variance_factor is not None
    )


def _kappa(scored: ScoredUnits, weights: Floats) -> Floats:
    # (R,) Cohen's kappa with quadratic weights (Cohen, Psychological Bulletin 1968).
    k = len(scored.classes)
    table = confusion(scored, weights)
    apart = (np.arange(k)[:, None] - np.arange(k)[None]) ** 2
    chance = np.einsum("ri,rj->rij", table.sum(axis=2), table.sum(axis=1))
    total = table.sum(axis=(1, 2))
    expected = safe_divide((apart * chance).sum(axis=(1, 2)), total)
    return 1 - safe_divide((apart * table).sum(axis=(1, 2)), expected)


ORDINAL_METRICS: dict[str, Metric] = {
    "kappa": Metric(_kappa, has_two_classes, bounds=(-1.0, 1.0), is_share=False),
    "auroc_cuts": Metric(
        _cuts_resampled, lambda scored: bool(_cuts(scored)), _cuts_exact, _cuts_variance_factor
    ),
    **CUT_METRICS,
}
