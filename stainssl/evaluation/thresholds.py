"""From which probability on a unit is called positive, chosen by validation patients alone."""

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
class Calls:
    """How a task of classes recalibrates probabilities and calls classes.

    Attributes:
        threshold: a probability; None: the validation patients choose it.
        sensitivity: that the second threshold is to have on validation patients, in (0, 1].
        recalibrate: how validation patients set probabilities right: see `recalibration`.
    """

    threshold: float | None = None
    sensitivity: float = 0.95
    recalibrate: str = "none"

    def recalibration(self, y: NDArray[np.int64], p: NDArray[Any]) -> Recalibration:
        """What is done to the probabilities of one fold's model before anything is called.

        Args:
            y: (n,) class index of the validation units.
            p: (n, K) their probabilities.
        """
        return recalibration(self.recalibrate, y, p)

    def cuts(self, y: NDArray[np.int64], p: Floats) -> dict[str, float]:
        """The thresholds of one fold's model, by column of its predictions.

        Args:
            y: (n,) class index of the validation units.
            p: (n, K) their probabilities.

        Returns:
            Empty where there are not two classes.
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


def calls_of(task: _Task) -> Calls:
    """How a task of the config calls."""
    threshold = None if task.threshold == "validation" else task.threshold
    return Calls(threshold, task.sensitivity, task.recalibrate)


def best_threshold(positive: NDArray[np.bool_], score: Floats) -> float:
    """The threshold of the best balanced accuracy; of several the nearest to one half.

    Thresholds that call alike are an interval between two scores; one half is taken where it lies
    in it, else the middle. Without units of both classes it is one half.

    Args:
        positive: (n,) bool.
        score: (n,) probability.
    """
    if positive.all() or not positive.any():
        return MIDDLE
    levels = np.unique(score)
    # Every set of calls once: everybody, then as the threshold passes each score.
    ends = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
    if levels[0] < MIDDLE < levels[-1]:
        ends = np.append(ends, MIDDLE)
    called = score[None] >= ends[:, None]
    sensitivity = called[:, positive].mean(axis=1)
    specificity = (~called[:, ~positive]).mean(axis=1)
    balanced = sensitivity + specificity
    best = ends[balanced >= balanced.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - MIDDLE))])


def sensitive_threshold(positive: NDArray[np.bool_], score: Floats, sensitivity: float) -> float:
    """The highest threshold that calls at least this share of the positive units positive.

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
    """Net benefit of calling by a probability (Vickers and Elkin, Medical Decision Making 2006).

    Args:
        positive: (n,) bool.
        score: (n,) probability.
        thresholds: (T,) in [0, 1): from which on is called, and what a false call costs: the odds.

    Returns:
        (T,) true calls less false ones times the odds, a share of all units.
    """
    cuts = np.asarray(thresholds, float)
    called = score[None] >= cuts[:, None]
    true, false = (called & positive).mean(axis=1), (called & ~positive).mean(axis=1)
    return np.asarray(true - false * cuts / (1 - cuts))


def calibration_curve(
    positive: NDArray[np.bool_], score: Floats, bins: int = 5
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """What is said and what comes true, in groups of as many units each.

    Args:
        positive: (n,) bool.
        score: (n,) probability.
        bins: groups at most.

    Returns:
        Mean probability, share of positives and number of units of each group.
    """
    groups = np.array_split(np.argsort(score, kind="stable"), min(bins, len(score)))
    stated = np.array([score[group].mean() for group in groups])
    true = np.array([positive[group].mean() for group in groups])
    return stated, true, np.array([len(group) for group in groups])
