"""Permutation test of two paired AUROCs: ranks are exchanged patient by patient."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from stainssl.evaluation.predictions import Floats, FoldScores, ScoredUnits

MAX_PATIENTS = 20  # up to which the test is used; with more, the limits alone are accurate
MAX_EXACT_PATIENTS = 14  # up to which all exchanges are enumerated: 16,384
DRAWN = 20_000  # random exchanges with more patients


def permutation_p(first: ScoredUnits, second: ScoredUnits) -> float:
    """Two-sided p-value of equal AUROCs of two classes, with one unit per patient.

    Bandos, Rockette and Gur, *A permutation test sensitive to differences in areas for comparing
    ROC curves from a paired design* (Statistics in Medicine 2005), with ranks within each fold.
    Patients are assumed to be independent, which is only approximately true in cross-validation.

    Args:
        first, second: the same units in the same order, ranked in the same folds.

    Returns:
        The share of exchanges after which the AUROCs differ by at least as much; 1 if nothing is
        ranked.
    """
    constant, slopes = 0.0, np.zeros(first.patients)
    repeats = {fold.repeat for fold in first.ranked}
    pairs = dict.fromkeys(repeats, 0.0)
    for fold in first.ranked:
        pairs[fold.repeat] += _pairs(first, fold)
    for one, other in zip(first.ranked, second.ranked, strict=True):
        if _pairs(first, one):
            share = 1 / (pairs[one.repeat] * len(repeats))
            level, slope = _linear(first.y[one.unit] == 1, one.p[:, 1], other.p[:, 1])
            constant += share * level
            np.add.at(slopes, first.patient[one.unit], share * slope)
    apart = np.abs(constant + _exchanges(first.patients) @ slopes)
    return float((apart >= abs(constant) - 1e-12).mean())


def _pairs(scored: ScoredUnits, fold: FoldScores) -> float:
    positive = scored.y[fold.unit] == 1
    return float(positive.sum() * (~positive).sum())


def _linear(positive: np.ndarray, first: Floats, second: Floats) -> tuple[float, Floats]:
    """Difference in correctly ranked pairs, as a linear function of the exchanges.

    With :math:`s_i = 1` if the ranks of patient i are exchanged, a pair of positive i and negative
    j contributes :math:`D (1 - s_i - s_j) + E (s_i - s_j)`, where D is its difference without
    exchange and E that with the ranks of the positive patient exchanged.

    Returns:
        The sum over pairs without exchange, and (n,) the change by each patient's exchange.
    """
    one, other = (pd.Series(side).rank().to_numpy() for side in (first, second))
    pos, neg = np.flatnonzero(positive), np.flatnonzero(~positive)

    def wins(of_positive: Floats, of_negative: Floats) -> Floats:
        return (np.sign(of_positive[pos][:, None] - of_negative[neg][None]) + 1) / 2

    stands = wins(one, one) - wins(other, other)
    crossed = wins(other, one) - wins(one, other)
    slope = np.zeros(len(first))
    slope[pos] = (crossed - stands).sum(axis=1)
    slope[neg] = -(crossed + stands).sum(axis=0)
    return float(stands.sum()), slope


def _exchanges(patients: int) -> Floats:
    """(R, P) 1 for exchanged patients: all ways, or random ones; row 0 exchanges nobody."""
    if patients <= MAX_EXACT_PATIENTS:
        return np.array(list(product((0.0, 1.0), repeat=patients)))
    drawn = np.random.default_rng(0).integers(0, 2, (DRAWN, patients)).astype(float)
    drawn[0] = 0
    return drawn
