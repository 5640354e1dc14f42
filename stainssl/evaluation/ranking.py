"""AUROC and AUPRC, computed among the test units of each fold and repeat.

Every fold has a model of its own, whose scores have their own level, so that scores of different
folds cannot be ranked together. If they are pooled, a perfect ranking at every site can come out
as chance, and without any signal the AUROC lies below one half (Airola et al., *A comparison of AUC
estimators in small-sample studies*, MLSB 2009). Folds are therefore averaged, weighted by their
pairs (one positive and one other unit), and repeats are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.evaluation.predictions import Floats, FoldScores, Ints, ScoredUnits

Bools = NDArray[np.bool_]
Curve = Callable[[Bools, Floats, Ints, Floats], tuple[Floats, Floats]]
_BLOCK = 400_000  # weights processed at once: 3 MB, about the cache of a core


def _in_order(
    positive: Bools, score: Floats, patient: Ints, weights: Floats
) -> Iterator[tuple[Floats, Floats]]:
    # Weights of positive and of negative units by increasing distinct score: (G, r) each, in blocks
    # of r resamples that fit into the cache.
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    ties = len(starts) < len(order)
    by_patient = np.ascontiguousarray(weights.T)
    columns = max(_BLOCK // max(len(order), 1), 8)
    for start in range(0, len(weights), columns):
        both = np.ascontiguousarray(by_patient[:, start : start + columns])[patient[order]]
        pos = both * positive[order, None]
        if ties:
            both, pos = (np.add.reduceat(part, starts, axis=0) for part in (both, pos))
        yield pos, both - pos


def safe_divide(top: Floats, bottom: Floats) -> Floats:
    """`top / bottom`; NaN where `bottom` is not positive."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 0)


def weighted_auroc(
    positive: Bools, score: Floats, patient: Ints, weights: Floats
) -> tuple[Floats, Floats]:
    """AUROC under each row of patient weights: weighted Mann–Whitney statistic, ties count half.

    Args:
        positive: (N,) bool.
        score: (N,) higher for positive.
        patient: (N,) index of each unit's patient.
        weights: (R, P) patient weights, at least 0.

    Returns:
        (R,) AUROCs, NaN if a class has no weight, and (R,) total weights of the pairs. An AUROC
        equals `sklearn.metrics.roc_auc_score(..., sample_weight=row[patient])`.
    """
    values, pairs = [], []
    for pos, neg in _in_order(positive, score, patient, weights):
        below = np.cumsum(neg, axis=0)
        below -= neg / 2
        pairs.append(pos.sum(axis=0) * neg.sum(axis=0))
        values.append(safe_divide(np.einsum("gr,gr->r", pos, below), pairs[-1]))
    return np.concatenate(values), np.concatenate(pairs)


def weighted_auprc(
    positive: Bools, score: Floats, patient: Ints, weights: Floats
) -> tuple[Floats, Floats]:
    """Average precision under each row of patient weights.

    Arguments and results are as in `weighted_auroc`; a value equals
    `sklearn.metrics.average_precision_score` with `sample_weight=row[patient]`.
    """
    values, pairs = [], []
    for pos, neg in _in_order(positive, -score, patient, weights):
        found = np.cumsum(pos, axis=0)
        named = found + np.cumsum(neg, axis=0)
        precision = np.divide(found, named, out=np.zeros_like(found), where=named > 0)
        values.append(safe_divide(np.einsum("gr,gr->r", pos, precision), found[-1]))
        pairs.append(found[-1] * (named[-1] - found[-1]))
    return np.concatenate(values), np.concatenate(pairs)


def folds_with_pairs(scored: ScoredUnits, k: int) -> Iterator[tuple[FoldScores, Bools]]:
    """Folds that test units of class `k` and of others, each with the mask (n,) of class `k`."""
    for fold in scored.ranked:
        positive = scored.y[fold.unit] == k
        if 0 < positive.sum() < len(positive):
            yield fold, positive


def classes_ranked(scored: ScoredUnits) -> list[int]:
    """Classes that can be ranked against the rest in some fold; of two, only the positive one."""
    classes = [1] if len(scored.classes) == 2 else scored.present()
    return [k for k in classes if any(folds_with_pairs(scored, k))]


def within_folds(curve: Curve, scored: ScoredUnits, k: int, weights: Floats) -> Floats:
    """Metric of class `k` against the rest: mean over folds, weighted by pairs, then over repeats.

    Args:
        curve: `weighted_auroc` or `weighted_auprc`.
        scored: the units.
        k: class index, ranked in at least one fold.
        weights: (R, P) patient weights.

    Returns:
        (R,) values, NaN if undefined in all repeats.
    """
    sums: dict[int, Floats] = {}
    for fold, positive in folds_with_pairs(scored, k):
        value, pairs = curve(positive, fold.p[:, k], scored.patient[fold.unit], weights)
        part = np.stack([np.where(pairs > 0, value, 0.0) * pairs, pairs])
        sums[fold.repeat] = sums.get(fold.repeat, 0.0) + part
    repeats = np.stack([safe_divide(*both) for both in sums.values()])
    defined = np.isfinite(repeats)
    return safe_divide(np.where(defined, repeats, 0.0).sum(axis=0), defined.sum(axis=0))


def macro(curve: Curve) -> Callable[[ScoredUnits, Floats], Floats]:
    """Metric over all classes: of the positive one of two, otherwise the mean of one-vs-rest."""

    def metric(scored: ScoredUnits, weights: Floats) -> Floats:
        classes = classes_ranked(scored)
        if not classes:
            return np.full(len(weights), np.nan)
        each = [within_folds(curve, scored, k, weights) for k in classes]
        return np.mean(each, axis=0)

    return metric


@dataclass(frozen=True)
class Pairs:
    """Sums over the pairs of an AUROC, from which its variance follows.

    Attributes:
        value: AUROC within folds.
        squares: sum of the pairs' squared weights.
        shared: sum of products of the weights of pairs that have one patient in common.
        influence: (P,) derivative of the AUROC with respect to each patient's weight; sums to 0.
    """

    value: float
    squares: float
    shared: float
    influence: Floats


def pairs_of(scored: ScoredUnits, k: int) -> Pairs:
    """Pairs of class `k` and the rest; requires one unit per patient.

    The weight of a pair is its share in the AUROC: one divided by the number of pairs of its repeat
    and by the number of repeats; all weights sum to one.
    """
    folds = list(folds_with_pairs(scored, k))
    repeats = sorted({fold.repeat for fold, _ in folds})
    won, reach = np.zeros((2, len(repeats), len(scored.y)))
    for fold, positive in folds:
        row = repeats.index(fold.repeat)
        won[row, fold.unit] += _wins(positive, fold.p[:, k])
        reach[row, fold.unit] += np.where(positive, (~positive).sum(), positive.sum())
    is_k = scored.y == k
    total = reach[:, is_k].sum(axis=1)  # pairs of each repeat
    values = won[:, is_k].sum(axis=1) / total
    share = 1 / (total * len(repeats))
    squares = _squared_weights(folds, dict(zip(repeats, share, strict=True)))
    shared = float(((share @ reach) ** 2).sum()) - 2 * squares
    influence = np.zeros(scored.patients)
    influence[scored.patient] = share @ (won - values[:, None] * reach)
    return Pairs(float(values.mean()), squares, shared, influence)


def _wins(positive: Bools, score: Floats) -> Floats:
    """(n,) number of correctly ranked pairs of each unit; ties count half."""
    both = pd.Series(score).rank().to_numpy()
    own = np.empty(len(score))
    for side in (positive, ~positive):
        own[side] = pd.Series(score[side]).rank()
    below = both - own  # units of the other class below, ties half
    return np.where(positive, below, positive.sum() - below)


def _squared_weights(folds: list[tuple[FoldScores, Bools]], share: dict[int, float]) -> float:
    # A pair that is ranked in several repeats has the sum of their weights.
    out = 0.0
    for one, is_positive in folds:
        for two, _ in folds:
            both = is_positive[np.isin(one.unit, two.unit)]
            out += both.sum() * (~both).sum() * share[one.repeat] * share[two.repeat]
    return float(out)
