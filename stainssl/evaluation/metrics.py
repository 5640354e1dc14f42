"""Metrics of predictions, each with an interval over patients.

The patient is what is resampled: a resample draws patients with replacement, and every tile or
slide of a patient comes with the weight of its patient. A resample is therefore a row of patient
weights, and each metric is computed exactly for many rows at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn import metrics as sk

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import class_name, class_order

Floats = NDArray[np.float64]
RESAMPLES = 2000
CONFIDENCE = 0.95
CALIBRATION_BINS = 10  # of equal width
_BLOCK = 400_000  # weights worked on at once: 3 MB, about a core's cache
UNIT = {"tile": ["slide_id", "tile"], "slide": ["slide_id"], "patient": ["patient_id"]}
COLUMNS = ["metric", "group", "value", "low", "high", "patients", "units"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredUnits:
    """Units (tiles, slides or patients) with their true class, scores and patients.

    Args:
        y: (N,) true class, an index into `classes`.
        p: (N, K) probability of each class.
        patient: (N,) index of each unit's patient, 0 … P-1.
        classes: K class words; of two, the second is the positive one.
    """

    y: NDArray[np.int64]
    p: Floats
    patient: NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def patients(self) -> int:
        """Number of patients."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) the most probable class."""
        return self.p.argmax(axis=1)

    def present(self) -> list[int]:
        """Classes that some unit has."""
        return np.unique(self.y).tolist()


# --- one column of scores against one class, for many resamples -------------------------------


def _in_order(
    positive: NDArray[np.bool_], score: Floats, patient: NDArray[np.int64], weights: Floats
) -> Iterator[tuple[Floats, Floats]]:
    # Weights of positive and of negative units, scores rising and equal scores summed: (G, r)
    # each, in blocks of resamples that stay in the cache.
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    ties = len(starts) < len(order)
    by_patient = np.ascontiguousarray(weights.T)
    columns = max(_BLOCK // max(len(order), 1), 8)
    for start in range(0, len(weights), columns):
        both = np.ascontiguousarray(by_patient[:, start : start + columns])[patient[order]]
        pos = both * positive[order, None]
        if ties:
            both, pos = (np.add.reduceat(part, starts, axis=0) for part in (both, pos))
        yield pos, both - pos


def _safe_divide(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 0)


def weighted_auroc(
    positive: NDArray[np.bool_], score: Floats, patient: NDArray[np.int64], weights: Floats
) -> Floats:
    """AUROC under each row of patient weights: a weighted Mann–Whitney statistic, ties half.

    Args:
        positive: (N,) bool.
        score: (N,) higher speaks for positive.
        patient: (N,) index of the unit's patient.
        weights: (R, P) of the patients, at least 0.

    Returns:
        (R,); NaN where a row leaves one class without weight. Equals
        `sklearn.metrics.roc_auc_score(..., sample_weight=row[patient])`.
    """
    parts = []
    for pos, neg in _in_order(positive, score, patient, weights):
        below = np.cumsum(neg, axis=0)
        below -= neg / 2
        won = np.einsum("gr,gr->r", pos, below)
        parts.append(_safe_divide(won, pos.sum(axis=0) * neg.sum(axis=0)))
    return np.concatenate(parts)


def weighted_auprc(
    positive: NDArray[np.bool_], score: Floats, patient: NDArray[np.int64], weights: Floats
) -> Floats:
    """Average precision under each row of patient weights.

    Args and returns as `weighted_auroc`; equals `sklearn.metrics.average_precision_score`.
    """
    parts = []
    for pos, neg in _in_order(positive, -score, patient, weights):
        found = np.cumsum(pos, axis=0)
        named = found + np.cumsum(neg, axis=0)
        precision = np.divide(found, named, out=np.zeros_like(found), where=named > 0)
        parts.append(_safe_divide(np.einsum("gr,gr->r", pos, precision), found[-1]))
    return np.concatenate(parts)


# --- metrics of `ScoredUnits`, for many resamples ----------------------------------------


def _one_vs_rest(curve: Callable[..., Floats]) -> Callable[[ScoredUnits, Floats], Floats]:
    def metric(scored: ScoredUnits, weights: Floats) -> Floats:
        classes = [1] if len(scored.classes) == 2 else scored.present()
        each = [curve(scored.y == k, scored.p[:, k], scored.patient, weights) for k in classes]
        return np.mean(each, axis=0)

    return metric


def _confusion(scored: ScoredUnits, weights: Floats) -> Floats:
    # (R, K, K): weight of true class (rows) by predicted class.
    k = len(scored.classes)
    per_patient = np.zeros((scored.patients, k * k))
    np.add.at(per_patient, (scored.patient, scored.y * k + scored.predicted), 1.0)
    return (weights @ per_patient).reshape(-1, k, k)


def _accuracy(scored: ScoredUnits, weights: Floats) -> Floats:
    right = (scored.y == scored.predicted).astype(np.float64)
    return weighted_mean(right, scored.patient, weights)


def _balanced_accuracy(scored: ScoredUnits, weights: Floats) -> Floats:
    table = _confusion(scored, weights)
    recall = _safe_divide(np.diagonal(table, axis1=1, axis2=2), table.sum(axis=2))
    return recall[:, scored.present()].mean(axis=1)


def _f1(scored: ScoredUnits, weights: Floats) -> tuple[Floats, Floats]:
    # (R, K) F1 of each class, 0 where it is neither there nor predicted, and its true weight.
    table = _confusion(scored, weights)
    hits = np.diagonal(table, axis1=1, axis2=2)
    true, guessed = table.sum(axis=2), table.sum(axis=1)
    return np.nan_to_num(_safe_divide(2 * hits, true + guessed)), true


def _f1_macro(scored: ScoredUnits, weights: Floats) -> Floats:
    return _f1(scored, weights)[0].mean(axis=1)


def _f1_weighted(scored: ScoredUnits, weights: Floats) -> Floats:
    f1, true = _f1(scored, weights)
    return _safe_divide((f1 * true).sum(axis=1), true.sum(axis=1))


def _squared_errors(scored: ScoredUnits) -> Floats:
    if len(scored.classes) == 2:
        return (scored.p[:, 1] - scored.y) ** 2
    return ((scored.p - np.eye(len(scored.classes))[scored.y]) ** 2).sum(axis=1)


def weighted_mean(values: Floats, patient: NDArray[np.int64], weights: Floats) -> Floats:
    """(R,) mean of (N,) unit values under each row of (R, P) patient weights."""
    sums = np.bincount(patient, values, weights.shape[1])
    counts = np.bincount(patient, minlength=weights.shape[1])
    return _safe_divide(weights @ sums, weights @ counts)


def _brier(scored: ScoredUnits, weights: Floats) -> Floats:
    return weighted_mean(_squared_errors(scored), scored.patient, weights)


def _calibration_error(scored: ScoredUnits, weights: Floats) -> Floats:
    # (R,) expected calibration error (Guo et al., 2017): how far what is said is from what comes
    # true, mean over bins of what is said. Of two classes the positive one's probability is what is
    # said; of more, that of the class predicted.
    stated, came_true = scored.p.max(axis=1), scored.predicted == scored.y
    if len(scored.classes) == 2:
        stated, came_true = scored.p[:, 1], scored.y == 1
    place = np.minimum((stated * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.zeros((scored.patients, CALIBRATION_BINS))
    np.add.at(gaps, (scored.patient, place), stated - came_true)
    units = np.bincount(scored.patient, minlength=scored.patients)
    return _safe_divide(np.abs(weights @ gaps).sum(axis=1), weights @ units)


# --- the same metrics once, by scikit-learn ---------------------------------------------------


def _sk_one_vs_rest(curve: Callable[..., float]) -> Callable[[ScoredUnits], float]:
    def metric(scored: ScoredUnits) -> float:
        if len(scored.classes) == 2:
            return float(curve(scored.y == 1, scored.p[:, 1]))
        each = [curve(scored.y == k, scored.p[:, k]) for k in scored.present()]
        return float(np.mean(each))

    return metric


def _sk_f1(average: str) -> Callable[[ScoredUnits], float]:
    def metric(scored: ScoredUnits) -> float:
        labels = range(len(scored.classes))
        return float(
            sk.f1_score(scored.y, scored.predicted, labels=labels, average=average, zero_division=0)
        )

    return metric


@dataclass(frozen=True)
class Metric:
    """A metric: its value, its values under rows of patient weights, and where it is defined."""

    value: Callable[[ScoredUnits], float]
    resampled: Callable[[ScoredUnits, Floats], Floats]  # (R, P) weights → (R,)
    needs_two_classes: bool = True
    higher_is_better: bool = True


METRICS: dict[str, Metric] = {
    "auroc": Metric(_sk_one_vs_rest(sk.roc_auc_score), _one_vs_rest(weighted_auroc)),
    "auprc": Metric(_sk_one_vs_rest(sk.average_precision_score), _one_vs_rest(weighted_auprc)),
    "accuracy": Metric(lambda s: float(sk.accuracy_score(s.y, s.predicted)), _accuracy),
    "balanced_accuracy": Metric(
        lambda s: float(sk.balanced_accuracy_score(s.y, s.predicted)), _balanced_accuracy
    ),
    "f1_macro": Metric(_sk_f1("macro"), _f1_macro),
    "f1_weighted": Metric(_sk_f1("weighted"), _f1_weighted),
    "brier": Metric(
        lambda s: float(_squared_errors(s).mean()),
        _brier,
        needs_two_classes=False,
        higher_is_better=False,
    ),
    "calibration_error": Metric(
        lambda s: float(_calibration_error(s, np.ones((1, s.patients)))[0]),
        _calibration_error,
        needs_two_classes=False,
        higher_is_better=False,
    ),
}


# --- the bootstrap ----------------------------------------------------------------------------


def _strata(scored: ScoredUnits) -> NDArray[np.int64]:
    # A patient's class, where every patient has one; else one stratum.
    low = np.full(scored.patients, len(scored.classes))
    high = np.full(scored.patients, -1)
    np.minimum.at(low, scored.patient, scored.y)
    np.maximum.at(high, scored.patient, scored.y)
    return high if np.array_equal(low, high) else np.zeros(scored.patients, int)


def patient_weights(scored: ScoredUnits, resamples: int, seed: int) -> Floats:
    """How often each patient is drawn in each resample.

    Patients are drawn with replacement, within their class where every patient has one class
    only (so that a resample keeps the classes' sizes).

    Returns:
        (R, P) whole numbers as float; every row sums to P.
    """
    rng = np.random.default_rng(seed)
    strata = _strata(scored)
    weights = np.zeros((resamples, scored.patients))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        share = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), share, size=resamples)
    return weights


def interval(values: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The percentile interval of resampled values; NaN where fewer than half are defined."""
    defined = values[np.isfinite(values)]
    if len(defined) * 2 < len(values) or not len(defined):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def can_resample(scored: ScoredUnits) -> bool:
    """Whether patients tell of their spread: two at least, and two a class where stratified."""
    return scored.patients >= 2 and bool(
        np.unique(_strata(scored), return_counts=True)[1].min() > 1
    )


def bootstrap_interval(
    metric: str, scored: ScoredUnits, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a metric over patients.

    Args:
        metric: a name of `METRICS`.
        scored: the units; those of one patient are drawn together.
        resamples: how many.
        seed: of the draws.

    Returns:
        (low, high); NaN where a class has a single patient, whose spread nothing tells.
    """
    if not can_resample(scored):
        return float("nan"), float("nan")
    weights = patient_weights(scored, resamples, seed)
    return interval(METRICS[metric].resampled(scored, weights))


def roc_band(
    scored: ScoredUnits, *, points: int = 101, resamples: int = 500, seed: int = 0
) -> pd.DataFrame:
    """ROC curve of a two-class task with a pointwise 95 % band over patients.

    Returns:
        `points` rows: `fpr` (0 … 1), `tpr`, `low`, `high`; the band is NaN where patients tell no
        spread.
    """
    order = np.argsort(-scored.p[:, 1], kind="stable")
    last = np.append(np.diff(scored.p[order, 1]) != 0, True)  # of a run of equal scores
    positive = scored.y[order] == 1
    grid = np.linspace(0, 1, points)

    def curve(weights: Floats) -> Floats:
        tpr, fpr = (np.cumsum(weights * side)[last] for side in (positive, ~positive))
        return np.interp(grid, np.append(0, fpr / fpr[-1]), np.append(0, tpr / tpr[-1]))

    low = high = np.full(points, np.nan)
    if can_resample(scored):
        drawn = patient_weights(scored, resamples, seed)[:, scored.patient[order]]
        both = [w for w in drawn if 0 < (w * positive).sum() < w.sum()]
        low, high = np.quantile([curve(w) for w in both], [0.025, 0.975], axis=0)
    return pd.DataFrame({"fpr": grid, "tpr": curve(np.ones(len(order))), "low": low, "high": high})


# --- from a table of predictions --------------------------------------------------------------


def probability_columns(predictions: pd.DataFrame) -> list[str]:
    """The columns `p_<class>` in the order of their classes; of two, the last is positive.

    Raises:
        StainsslError: fewer than two.
    """
    found = class_order(
        [c.removeprefix("p_") for c in map(str, predictions.columns) if c.startswith("p_")]
    )
    if len(found) < 2:
        raise StainsslError(
            "Predictions need a column p_<class> for each of two classes at least; found"
            f" {', '.join(map(str, predictions.columns))}."
        )
    return [f"p_{name}" for name in found]


def average_repeats(predictions: pd.DataFrame, level: str) -> pd.DataFrame:
    """One row per tile, slide or patient: its probabilities averaged over repeats and folds.

    Args:
        predictions: test rows: `patient_id`, `slide_id`, `y`, `p_<class>`…, `tile` at level tile;
            `site` is kept where it is there.
        level: `tile`, `slide` or `patient`.

    Returns:
        The unit's columns, `patient_id`, `site`, `y` (class word) and `p_<class>`, sorted by unit.

    Raises:
        StainsslError: a unit has two true classes or two patients.
    """
    unit = UNIT[level]
    p = probability_columns(predictions)
    kept = [c for c in dict.fromkeys(["patient_id", "slide_id", "site", "y"]) if c in predictions]
    frame = predictions.assign(y=predictions["y"].map(class_name))
    grouped = frame.groupby(unit, sort=True)
    for column in {"patient_id", "y"} - set(unit):
        if (grouped[column].nunique() > 1).any():
            raise StainsslError(f"Predictions: a {level} has two values of {column!r}.")
    how = {**{c: (c, "first") for c in kept if c not in unit}, **{c: (c, "mean") for c in p}}
    return grouped.agg(**how).reset_index()


def scored_units(units: pd.DataFrame) -> ScoredUnits:
    """`ScoredUnits` of the rows that `average_repeats` gives.

    Raises:
        StainsslError: a true class has no `p_<class>`, or a probability is not finite.
    """
    columns = probability_columns(units)
    classes = tuple(c.removeprefix("p_") for c in columns)
    y = units["y"].map({name: i for i, name in enumerate(classes)})
    if y.isna().any():
        strange = sorted(set(units.loc[y.isna(), "y"].astype(str)))
        raise StainsslError(f"Predictions: true class {strange} has no column p_<class>.")
    p = units[columns].to_numpy(float)
    if not np.isfinite(p).all():
        raise StainsslError(
            f"Predictions: {int((~np.isfinite(p)).any(1).sum())} rows are not finite."
        )
    patient = np.unique(units["patient_id"].to_numpy(str), return_inverse=True)[1]
    return ScoredUnits(np.asarray(y, np.int64), p, patient, classes)


def site_groups(units: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """`("all", everything)`, then `("site=a", its rows)` for each site where there are two."""
    yield "all", units
    if "site" in units and units["site"].nunique() > 1:
        for site, rows in units.groupby("site", sort=True):
            yield f"site={site}", rows


def evaluate(
    predictions: pd.DataFrame, level: str, seed: int, *, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Every metric of a task's predictions with its interval, over all and per site.

    Args:
        predictions: test rows, as `average_repeats` takes them; out-of-fold predictions are
            averaged over repeats before they are resampled.
        level: `tile`, `slide` or `patient`.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        `metric`, `group` ("all", "site=a" …), `value`, `low`, `high` (95 % over patients),
        `patients`, `units`. A metric that is undefined in a group is NaN, its reason in the log.
    """
    units = average_repeats(predictions, level)
    rows = [
        row
        for group, part in site_groups(units)
        for row in _group_rows(group, scored_units(part), seed, resamples)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _group_rows(group: str, scored: ScoredUnits, seed: int, resamples: int) -> Iterator[tuple]:
    two_classes = len(scored.present()) > 1
    spread = can_resample(scored)
    if not two_classes:
        log.warning(
            "%s: one class only; all but Brier's score and calibration are undefined", group
        )
    elif not spread:
        log.warning("%s: a class has a single patient; no interval can be given", group)
    weights = patient_weights(scored, resamples, seed) if spread else None
    for name, metric in METRICS.items():
        value = low = high = float("nan")
        if two_classes or not metric.needs_two_classes:
            value = metric.value(scored)
            if weights is not None:
                low, high = interval(metric.resampled(scored, weights))
        yield name, group, value, low, high, scored.patients, len(scored.y)
