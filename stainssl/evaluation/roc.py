"""ROC curve averaged over folds, with a confidence band over patients."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stainssl.evaluation.intervals import drawn_estimate
from stainssl.evaluation.metrics import can_resample, patient_weights
from stainssl.evaluation.predictions import Floats, FoldScores, ScoredUnits
from stainssl.evaluation.ranking import folds_with_pairs, safe_divide


def _fold_curve(fold: FoldScores, scored: ScoredUnits, grid: Floats, drawn: Floats) -> Floats:
    # (R, points + 1): the fold's curve on the grid, times its number of pairs; then that number.
    order = np.argsort(-fold.p[:, 1], kind="stable")
    last = np.append(np.diff(fold.p[order, 1]) != 0, True)  # last of equal scores
    rows = fold.unit[order]
    positive = scored.y[rows] == 1
    out = np.zeros((len(drawn), len(grid) + 1))
    for place, weights in enumerate(drawn[:, scored.patient[rows]]):
        tpr, fpr = (np.cumsum(weights * side)[last] for side in (positive, ~positive))
        if (pairs := tpr[-1] * fpr[-1]) > 0:
            curve = np.interp(grid, np.append(0, fpr / fpr[-1]), np.append(0, tpr / tpr[-1]))
            out[place] = np.append(curve * pairs, pairs)
    return out


def _mean_curve(scored: ScoredUnits, grid: Floats, drawn: Floats) -> Floats:
    # (R, points): mean over folds, weighted by pairs, then over repeats.
    sums: dict[int, Floats] = {}
    for fold, _ in folds_with_pairs(scored, 1):
        sums[fold.repeat] = sums.get(fold.repeat, 0.0) + _fold_curve(fold, scored, grid, drawn)
    each = [safe_divide(s[:, :-1], np.repeat(s[:, -1:], len(grid), 1)) for s in sums.values()]
    repeats = np.stack(each)
    return safe_divide(np.nansum(repeats, axis=0), np.isfinite(repeats).sum(axis=0))


def roc_band(
    scored: ScoredUnits, *, points: int = 101, resamples: int = 500, seed: int = 0
) -> pd.DataFrame:
    """ROC curve of a two-class task with a pointwise 95 % band over patients.

    Sensitivities at each false positive rate are averaged over folds, weighted by their pairs
    (vertical averaging, Fawcett, Pattern Recognition Letters 2006), and over repeats, so that the
    area under the curve is the AUROC within folds.

    Args:
        scored: units of two classes.
        points: number of false positive rates.
        resamples, seed: number of resamples and random seed of the band.

    Returns:
        `points` rows: `fpr` (0 … 1), `tpr`, `low`, `high`. The band is NaN if patients cannot be
        resampled or all curves are alike.
    """
    grid = np.linspace(0, 1, points)
    tpr = _mean_curve(scored, grid, np.ones((1, scored.patients)))[0]
    band = np.full((points, 2), np.nan)
    if can_resample(scored):
        drawn = _mean_curve(scored, grid, patient_weights(scored, resamples, seed))
        drawn = drawn[np.isfinite(drawn).all(axis=1)]
        if len(drawn) * 2 >= resamples and np.ptp(drawn, axis=0).max() > 0:
            band = np.array(
                [drawn_estimate(t, d, scored.patients).interval for t, d in zip(tpr, drawn.T,
                 strict=True)]
            )  # fmt: skip
            still = np.ptp(drawn, axis=0) == 0  # at the ends all resamples are equal
            band[still] = tpr[still, None]
    return pd.DataFrame({"fpr": grid, "tpr": tpr, "low": band[:, 0], "high": band[:, 1]})
