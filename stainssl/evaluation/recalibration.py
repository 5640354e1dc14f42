"""Recalibration of probabilities on validation patients, which keeps ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MAX_SLOPE = 20.0  # the lowest is its inverse: positive, so that ranks are kept
TINY = 1e-12  # lower limit of probabilities before the logarithm


@dataclass(frozen=True)
class Recalibration:
    """A linear map of a model's logits; by default the identity.

    Attributes:
        slope: positive; in temperature scaling, one divided by the temperature.
        offset: added to the last class.
    """

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, p: NDArray[Any]) -> NDArray[Any]:
        """Recalibrate (N, K) probabilities; the dtype is kept."""
        if self == UNCHANGED:
            return p
        logits = self.slope * np.log(np.maximum(p, TINY, dtype=np.float64))
        logits[:, -1] += self.offset
        return np.exp(_log_softmax(logits)).astype(p.dtype)


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


UNCHANGED = Recalibration()


def recalibration(how: str, y: NDArray[np.int64], p: NDArray[Any]) -> Recalibration:
    """Fit a recalibration to validation patients.

    `platt` (two classes) fits slope and offset of a logistic regression on the logit, with Platt's
    smoothed targets (*Probabilistic outputs for support vector machines*, Advances in Large Margin
    Classifiers 1999), which prevent overconfidence with few patients. `temperature` fits the slope
    alone, with the same targets (Guo et al., *On calibration of modern neural networks*, ICML
    2017). The slope is positive, so that with two classes the ranks do not change.

    Args:
        how: `none`, `temperature` or `platt`.
        y: (n,) class index of units that did not train the model.
        p: (n, K) their probabilities.

    Returns:
        The identity if `how` is `none` or all units are of one class.
    """
    if how == "none" or len(np.unique(y)) < 2:
        return UNCHANGED
    from scipy.optimize import minimize  # takes half a second; only recalibration needs it

    logits = np.log(np.maximum(p, TINY, dtype=np.float64))
    targets = _drawn_in(y, p.shape[1])
    free = 2 if how == "platt" else 1

    def loss(line: Floats) -> float:
        moved = np.exp(line[0]) * logits
        moved[:, -1] += line[1] if free == 2 else 0.0
        return float(-(targets * _log_softmax(moved)).sum(axis=1).mean())

    edge = np.log(MAX_SLOPE)
    bounds = [(-edge, edge), (None, None)][:free]
    found = minimize(loss, np.zeros(free), method="L-BFGS-B", bounds=bounds).x
    return Recalibration(float(np.exp(found[0])), float(found[1]) if free == 2 else 0.0)


def _drawn_in(y: NDArray[np.int64], classes: int) -> Floats:
    """(n, K) smoothed targets: (N + 1) / (N + K) for a unit's class, which has N units."""
    counts = np.bincount(y, minlength=classes)
    own = (counts[y] + 1) / (counts[y] + classes)
    targets = np.repeat(((1 - own) / (classes - 1))[:, None], classes, axis=1)
    targets[np.arange(len(y)), y] = own
    return targets
