"""What a metric is, and means over units under many weightings of the patients at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stainssl.evaluation.intervals import Estimate
from stainssl.evaluation.predictions import Floats, ScoredUnits
from stainssl.evaluation.ranking import safe_divide

Resampled = Callable[[ScoredUnits, Floats], Floats]


@dataclass(frozen=True)
class Metric:
    """A metric under rows of patient weights, where it is defined and how its interval is made.

    Attributes:
        resampled: (R, P) weights → (R,).
        is_defined: whether the units have what it needs.
        exact: the estimate in closed form, where every patient is one unit; None: resampled.
        spread: how much more its cross-validated resamples vary than independent ones, by the
            units and the value; None: as much.
        bounds: the least and the largest value.
        is_share: whether a value of 0 or 1 that no patient speaks against is a share of patients.
    """

    resampled: Resampled
    is_defined: Callable[[ScoredUnits], bool]
    exact: Callable[[ScoredUnits], Estimate] | None = None
    spread: Callable[[ScoredUnits, float], float] | None = None
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    is_share: bool = True

    @property
    def ranks(self) -> bool:
        """Whether it is of units that one model was tested on."""
        return self.spread is not None

    def value(self, scored: ScoredUnits) -> float:
        """The metric with every patient counted once."""
        return float(self.resampled(scored, np.ones((1, scored.patients)))[0])


def weighted_share(hits: Floats, of: Floats, patient: NDArray[np.int64], weights: Floats) -> Floats:
    """(R,) share of the units in `of` that are hits, under each row of (R, P) patient weights.

    Args:
        hits, of: (N,) 0 or 1; any number in `hits` makes it a mean.
    """
    top = np.bincount(patient, hits * of, weights.shape[1])
    bottom = np.bincount(patient, of, weights.shape[1])
    return safe_divide(weights @ top, weights @ bottom)


def weighted_mean(values: Floats, patient: NDArray[np.int64], weights: Floats) -> Floats:
    """(R,) mean of (N,) unit values under each row of (R, P) patient weights."""
    return weighted_share(values, np.ones(len(values)), patient, weights)
