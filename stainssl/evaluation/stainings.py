"""Tiles under two stainings, and robustness metrics with intervals over patients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.evaluation.intervals import drawn_estimate
from stainssl.evaluation.metric import weighted_mean
from stainssl.evaluation.metrics import RESAMPLES, patient_weights
from stainssl.evaluation.predictions import Floats, ScoredUnits

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]
JACKKNIFE_GROUPS = 20


class MetricRow(NamedTuple):
    """A row of `metrics.csv`: a metric with its 95 % interval over patients."""

    metric: str
    group: str
    value: float
    low: float
    high: float
    patients: int
    units: int


@dataclass(frozen=True)
class Stainings:
    """Embeddings of N tiles by one encoder: original, and re-stained to two stainings.

    Args:
        original, first, second: (N, D) embeddings, finite.
        table: N rows: `patient_id`, `slide_id`, `tile`, `site`, `label` (class name).
    """

    original: Vectors
    first: Vectors
    second: Vectors
    table: pd.DataFrame

    @property
    def patient(self) -> Ints:
        """(N,) index of each tile's patient."""
        return index(self.table["patient_id"])


def index(words: pd.Series) -> Ints:
    """(N,) index of each word among the sorted distinct words."""
    return np.unique(words.to_numpy(str), return_inverse=True)[1]


def unit_length(vectors: Vectors) -> Vectors:
    """Normalize (N, D) vectors to unit length; zero vectors are kept."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def plain_weights(patient: Ints, seed: int) -> Floats:
    """(R, P) number of times that each patient is drawn, regardless of class."""
    one_class = np.zeros(len(patient), np.int64)
    scored = ScoredUnits(one_class, np.zeros((len(patient), 2)), patient, ("0", "1"))
    return patient_weights(scored, RESAMPLES, seed)


def metric_row(
    metric: str, value: float, resampled: Floats, patient: Ints, group: str = "all"
) -> MetricRow:
    """A metric with its interval, from (R,) resampled values; `patient`: (N,) index per tile."""
    patients = len(np.unique(patient))
    low, high = drawn_estimate(float(value), resampled, patients).interval
    return MetricRow(metric, group, float(value), low, high, patients, len(patient))


def mean_metric(metric: str, values: NDArray[Any], patient: Ints, seed: int) -> MetricRow:
    """Mean of (N,) tile values, with an interval from resampled patients."""
    drawn = weighted_mean(np.asarray(values, float), patient, plain_weights(patient, seed))
    return metric_row(metric, float(np.mean(values)), drawn, patient)


def median_metric(metric: str, values: NDArray[Any], patient: Ints, seed: int) -> MetricRow:
    """Median of (N,) tile values, with an interval from resampled patients."""
    order = np.argsort(values)
    cumulative = np.cumsum(plain_weights(patient, seed)[:, patient[order]], axis=1)
    place = (cumulative < cumulative[:, -1:] / 2).sum(axis=1)
    return metric_row(
        metric, float(np.median(values)), np.asarray(values, float)[order][place], patient
    )


def jackknife_metric(
    metric: str, value_of: Callable[[NDArray[np.bool_]], float], patient: Ints
) -> MetricRow:
    """A metric with a delete-a-group jackknife interval.

    For metrics that resampling with replacement would distort: duplicated patients lower a rank and
    are neighbors of themselves. Groups of patients are left out in turn instead (Efron and
    Tibshirani, 1993, chapter 11).

    Args:
        metric: name of the metric.
        value_of: mask (N,) of tiles → value.
        patient: (N,) index of each tile's patient.

    Returns:
        Limits are NaN with fewer than three patients.
    """
    everything = np.ones(len(patient), bool)
    value = value_of(everything)
    patients = len(np.unique(patient))
    groups = min(patients, JACKKNIFE_GROUPS)
    if groups < 3:
        return MetricRow(metric, "all", value, float("nan"), float("nan"), patients, len(patient))
    left_out = np.array([value_of(patient % groups != group) for group in range(groups)])
    error = np.sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())
    return MetricRow(
        metric, "all", value, value - 1.96 * error, value + 1.96 * error, patients, len(patient)
    )
