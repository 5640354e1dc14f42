"""The class `Metric`, and weighted means over units for many resamples of patients at once."""

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
    """A metric, with the condition under which it is defined and the method of its interval.

    Attributes:
        resampled: units and (R, P) patient weights → (R,) values.
        is_defined: whether the metric is defined for the units.
        exact: estimate in closed form if every patient is one unit; None: always resampled.
        variance_factor: units and value → factor by which cross-validation increases the variance
            of the resamples; None: no increase, and the metric does not rank.
        higher_is_better: whether a higher value is better.
        bounds: lowest and highest possible value.
        is_share: whether a metric of 0 or 1 in all resamples has Wilson's limits for a proportion
            of the patients.
    """

    resampled: Resampled
    is_defined: Callable[[ScoredUnits], bool]
    exact: Callable[[ScoredUnits], Estimate] | None = None
    variance_factor: Callable[[ScoredUnits, float], float] | None = None
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    is_share: bool = True

    @property
    def ranks(self) -> bool:
        """Whether it ranks test units within a fold."""
        return self.variance_factor is not None

    def value(self, scored: ScoredUnits) -> float:
        """The metric with equal weights of all patients."""
        return float(self.resampled(scored, np.ones((1, scored.patients)))[0])


def weighted_share(hits: Floats, of: Floats, patient: NDArray[np.int64], weights: Floats) -> Floats:
    """(R,) weighted share of hits among the units in `of`; NaN if these have no weight.

    Args:
        hits, of: (N,) 0 or 1; with other numbers in `hits`, the result is their mean.
        patient: (N,) index of each unit's patient.
        weights: (R, P) patient weights.
    """
    top = np.bincount(patient, hits * of, weights.shape[1])
    bottom = np.bincount(patient, of, weights.shape[1])
    return safe_divide(weights @ top, weights @ bottom)


def weighted_mean(values: Floats, patient: NDArray[np.int64], weights: Floats) -> Floats:
    """(R,) weighted mean of (N,) unit values; arguments as in `weighted_share`."""
    return weighted_share(values, np.ones(len(values)), patient, weights)
