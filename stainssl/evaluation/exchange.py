"""Whether two AUROCs of few patients differ: both sides' ranks exchanged, patient by patient."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from stainssl.evaluation.predictions import Floats, FoldScores, ScoredUnits

MAX_PATIENTS = 20  # up to which the test is asked; with more, limits hold by themselves
MAX_EXACT_PATIENTS = 14  # patients of whom every exchange is counted, 16,384
DRAWN = 20_000  # exchanges of more patients


def exchange_p(first: ScoredUnits, second: ScoredUnits) -> float:
    """Two-sided p-value of equal AUROCs of two classes, of units that are one patient each.

    Bandos, Rockette and Gur, *A permutation test sensitive to differences in areas for comparing
    ROC curves from a paired design* (Statistics in Medicine 2005), with ranks within each fold.
    Patients are taken to be independent, which in cross-validation they are not quite.

    Args:
        first, second: the same units in the same order, ranked in the same folds.

    Returns:
        The share of exchanges by which AUROCs are as far apart at least; 1 where nothing is ranked.
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
    """Wins of the first side less those of the second, as a line in who is exchanged.

    With :math:`s` 1 where a patient's ranks are exchanged, a pair counts :math:`D (1 - s_i - s_j) +
    E (s_i - s_j)`: D is the difference as it stands, E that with the positive's ranks exchanged.

    Returns:
        The sum over pairs with nobody exchanged, and (n,) what each patient's exchange adds.
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
    """(R, P) 1 where a patient's ranks are exchanged: every way, or some with nobody first."""
    if patients <= MAX_EXACT_PATIENTS:
        return np.array(list(product((0.0, 1.0), repeat=patients)))
    drawn = np.random.default_rng(0).integers(0, 2, (DRAWN, patients)).astype(float)
    drawn[0] = 0
    return drawn
