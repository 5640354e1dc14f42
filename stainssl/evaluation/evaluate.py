"""Compute all metrics of a table of predictions, over all units and by site."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from stainssl.evaluation.metrics import (
    RESAMPLES,
    can_resample,
    estimate,
    metrics_of,
    patient_weights,
    within_bounds,
)
from stainssl.evaluation.predictions import (
    RegressionUnits,
    ScoredUnits,
    SurvivalUnits,
    average_repeats,
    scored_units,
    site_groups,
)
from stainssl.evaluation.ranking import classes_ranked
from stainssl.evaluation.regression_metrics import log_undefined_regression
from stainssl.evaluation.survival_metrics import log_undefined_survival

log = logging.getLogger(__name__)
COLUMNS = ["metric", "group", "value", "low", "high", "patients", "units", "classes"]
NO_PAIRS = (
    "no fold tests units of two classes, so ranking metrics are undefined. Leaving one patient out"
    " at a time is such a split: use folds of several patients ('kind: cv')"
)


def evaluate(
    predictions: pd.DataFrame, level: str, seed: int, *, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """All metrics of a task's predictions with their intervals, over all units and per site.

    Args:
        predictions: test rows, as in `predictions.average_repeats`.
        level: `tile`, `slide` or `patient`.
        seed: random seed of the resamples.
        resamples: number of resamples of the patients.

    Returns:
        `metric`, `group` ("all", "site=a" …), `value`, `low`, `high` (95 % over patients),
        `patients`, `units`, `classes` (number of classes among the units). A metric that is
        undefined in a group is NaN, with the reason in the log.
    """
    units = average_repeats(predictions, level)
    scored = scored_units(units, predictions, level)
    rows = [
        row
        for group, mask in site_groups(units)
        for row in _group_rows(group, scored.take(mask), seed, resamples)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _group_rows(
    group: str, scored: ScoredUnits, seed: int, resamples: int
) -> Iterator[tuple[Any, ...]]:
    LOG_UNDEFINED.get(type(scored), _log_undefined)(group, scored)
    weights = patient_weights(scored, resamples, seed) if can_resample(scored) else None
    counts = (scored.patients, len(scored.y), len(scored.present()))
    for name in metrics_of(scored):
        found = estimate(name, scored, weights=weights)
        yield name, group, found.value, *within_bounds(name, found).interval, *counts


def _log_undefined(group: str, scored: ScoredUnits) -> None:
    if len(scored.present()) < 2:
        log.warning(
            "%s: one class only; all but Brier's score and calibration are undefined", group
        )
    elif not classes_ranked(scored):
        log.warning("%s: %s", group, NO_PAIRS)
    elif not can_resample(scored):
        log.warning("%s: a class has a single patient; some intervals are undefined", group)


LOG_UNDEFINED: dict[type[ScoredUnits], Callable[[str, ScoredUnits], None]] = {
    RegressionUnits: log_undefined_regression,
    SurvivalUnits: log_undefined_survival,
}
