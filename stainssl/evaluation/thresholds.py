"""Decision thresholds chosen on validation patients; net benefit and calibration curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stainssl.evaluation.predictions import RULE_OUT, THRESHOLD
from stainssl.evaluation.recalibration import Recalibration, recalibration

Floats = NDArray[np.float64]
MIDDLE = 0.5


@dataclass(frozen=True)
class DecisionRule:
    """How a classification task recalibrates probabilities and chooses thresholds.

    Attributes:
        threshold: a fixed probability; None: chosen on the validation patients.
        sensitivity: target of the second threshold on validation patients, in (0, 1].
        recalibrate: method of `recalibration`.
    """

    threshold: float | None = None
    sensitivity: float = 0.95
    recalibrate: str = "none"

    def recalibration(self, y: NDArray[np.int64], p: NDArray[Any]) -> Recalibration:
        """Fit the recalibration of one fold's model.

        Args:
            y: (n,) class index of the validation units.
            p: (n, K) their probabilities.
        """
        return recalibration(self.recalibrate, y, p)

    def thresholds(self, y: NDArray[np.int64], p: Floats) -> dict[str, float]:
        """Choose the thresholds of one fold's model.

        Args:
            y: (n,) class index of the validation units.
            p: (n, K) their recalibrated probabilities.

        Returns:
            Column of the predictions → threshold; empty unless there are two classes.
        """
        if p.shape[1] != 2:
            return {}
        positive, score = y == 1, p[:, 1].astype(float)
        chosen = best_threshold(positive, score) if self.threshold is None else self.threshold
        return {THRESHOLD: chosen, RULE_OUT: sensitive_threshold(positive, score, self.sensitivity)}


class _Task(Protocol):
    threshold: Any
    sensitivity: Any
    recalibrate: Any


def decision_rule_of(task: _Task) -> DecisionRule:
    """Create `DecisionRule` from a task of the config."""
    threshold = None if task.threshold == "validation" else task.threshold
    return DecisionRule(threshold, task.sensitivity, task.recalibrate)


def best_threshold(positive: NDArray[np.bool_], score: Floats) -> float:
    """Threshold with the best balanced accuracy; in case of ties the nearest to one half.

    Thresholds between two adjacent scores give the same predictions. Their midpoint is a candidate,
    and so is one half if it lies between the lowest and the highest score. Without units of both
    classes, the threshold is one half.

    Args:
        positive: (n,) bool.
        score: (n,) probability.
    """
    if positive.all() or not positive.any():
        return MIDDLE
    levels = np.unique(score)
    # One candidate for every distinct set of predictions: all positive, …, none.
    ends = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
    if levels[0] < MIDDLE < levels[-1]:
        ends = np.append(ends, MIDDLE)
    predicted = score[None] >= ends[:, None]
    sensitivity = predicted[:, positive].mean(axis=1)
    specificity = (~predicted[:, ~positive]).mean(axis=1)
    balanced = sensitivity + specificity
    best = ends[balanced >= balanced.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - MIDDLE))])


def sensitive_threshold(positive: NDArray[np.bool_], score: Floats, sensitivity: float) -> float:
    """The highest threshold with at least this sensitivity.

    Args:
        positive: (n,) bool.
        score: (n,) probability.
        sensitivity: in (0, 1].

    Returns:
        NaN without positive units.
    """
    found = np.sort(score[positive])
    if not len(found):
        return float("nan")
    missed = int(np.floor((1 - sensitivity) * len(found) + 1e-9))
    return float(found[missed])


def net_benefit(
    positive: NDArray[np.bool_], score: Floats, thresholds: Sequence[float] | Floats
) -> Floats:
    """Net benefit at each threshold (Vickers and Elkin, Medical Decision Making 2006).

    Args:
        positive: (n,) bool.
        score: (n,) probability.
        thresholds: (T,) in [0, 1); units are predicted positive from the threshold on.

    Returns:
        (T,) true positives minus false positives times the odds of the threshold, as a share of
        all units.
    """
    cuts = np.asarray(thresholds, float)
    predicted = score[None] >= cuts[:, None]
    true, false = (predicted & positive).mean(axis=1), (predicted & ~positive).mean(axis=1)
    return np.asarray(true - false * cuts / (1 - cuts))


def calibration_curve(
    positive: NDArray[np.bool_], score: Floats, bins: int = 5
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Predicted and observed frequency in groups of equal size, sorted by probability.

    Args:
        positive: (n,) bool.
        score: (n,) probability.
        bins: maximum number of groups.

    Returns:
        Mean probability, share of positives, and number of units of each group.
    """
    groups = np.array_split(np.argsort(score, kind="stable"), min(bins, len(score)))
    stated = np.array([score[group].mean() for group in groups])
    true = np.array([positive[group].mean() for group in groups])
    return stated, true, np.array([len(group) for group in groups])
