"""Predictions in the form in which metrics are computed: averaged over repeats, and by fold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import GRADE, RISK, VALUE, class_name
from stainssl.evaluation.follow_up import follow_up

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
UNIT = {"tile": ["slide_id", "tile"], "slide": ["slide_id"], "patient": ["patient_id"]}
FOLD = ["repeat", "fold"]
MEDIAN = 0.5
THRESHOLD, RULE_OUT = "threshold", "threshold_rule_out"  # columns of decision thresholds
SURVIVAL = "s_"  # prefix of columns of predicted survival; the time follows
RISK_GROUPS = ("low", "high")


@dataclass(frozen=True)
class FoldScores:
    """Predictions of one fold's model for its test units; scores are ranked only within a fold.

    Attributes:
        repeat: repeat of the split.
        unit: (n,) indices into the rows of `ScoredUnits`.
        p: (n, K) class probabilities; (n, 1) predicted number; or (n, 1 + T) risk, then survival
            at each time.
    """

    repeat: int
    unit: Ints
    p: Floats


@dataclass(frozen=True)
class ScoredUnits:
    """Units (tiles, slides or patients) with true class, predictions and patient.

    Attributes:
        y: (N,) true class, index into `classes`.
        p: (N, K) class probabilities, averaged over repeats.
        patient: (N,) index of each unit's patient, 0 … P-1.
        classes: K class names; of two, the second is positive.
        folds: predictions of each fold's model; empty if one model predicted all units.
        threshold: (N,) probability from which a unit is predicted positive (two classes); None:
            the most probable class is predicted.
        rule_out: (N,) second threshold, for a given sensitivity on validation patients, or None.
    """

    y: Ints
    p: Floats
    patient: Ints
    classes: tuple[str, ...]
    folds: tuple[FoldScores, ...] = ()
    threshold: Floats | None = None
    rule_out: Floats | None = None

    @property
    def patients(self) -> int:
        """Number of patients."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0

    @property
    def predicted(self) -> Ints:
        """(N,) predicted class: by `threshold` if given, otherwise the most probable."""
        return predicted_class(self.p, self.threshold)

    @property
    def ranked(self) -> tuple[FoldScores, ...]:
        """`folds`, or a single fold with all units if there are none."""
        return self.folds or (FoldScores(0, np.arange(len(self.y)), self.p),)

    @property
    def is_by_patient(self) -> bool:
        """Whether every patient has exactly one unit."""
        return self.patients == len(self.y)

    @property
    def is_cross_validated(self) -> bool:
        """Whether a repeat has several folds, so that test patients trained the other models."""
        repeats = [fold.repeat for fold in self.ranked]
        return len(repeats) > len(set(repeats))

    def present(self) -> list[int]:
        """Indices of the classes that occur among the units."""
        return np.unique(self.y).tolist()

    @property
    def strata(self) -> Ints:
        """(P,) class of each patient if all have a single one, otherwise one stratum for all."""
        low = np.full(self.patients, len(self.classes))
        high = np.full(self.patients, -1)
        np.minimum.at(low, self.patient, self.y)
        np.maximum.at(high, self.patient, self.y)
        return high if np.array_equal(low, high) else np.zeros(self.patients, int)

    def take(self, kept: NDArray[np.bool_]) -> ScoredUnits:
        """Select units by the mask `kept` (N,); patients are numbered anew."""
        place = np.cumsum(kept) - 1
        folds = []
        for fold in self.folds:
            inside = kept[fold.unit]
            if inside.any():
                folds.append(FoldScores(fold.repeat, place[fold.unit[inside]], fold.p[inside]))
        patient = np.unique(self.patient[kept], return_inverse=True)[1]
        threshold, rule_out = (
            None if cut is None else cut[kept] for cut in (self.threshold, self.rule_out)
        )
        return replace(
            self, y=self.y[kept], p=self.p[kept], patient=patient, folds=tuple(folds),
            threshold=threshold, rule_out=rule_out,
        )  # fmt: skip

    def pooled(self) -> ScoredUnits:
        """The same units without folds, for metrics of pooled predictions."""
        return replace(self, folds=())


@dataclass(frozen=True)
class RegressionUnits(ScoredUnits):
    """Units with a numeric label: `y` (N,) float true values, `p` (N, 1) predicted values."""

    @property
    def value(self) -> Floats:
        """(N,) predicted values, averaged over repeats."""
        return self.p[:, 0]

    def present(self) -> list[int]:
        """Empty: numbers have no classes."""
        return []

    @property
    def strata(self) -> Ints:
        """(P,) a single stratum."""
        return np.zeros(self.patients, np.int64)


@dataclass(frozen=True)
class OrdinalUnits(ScoredUnits):
    """Units of ordered classes; each cut between adjacent classes is a two-class task."""

    @property
    def predicted(self) -> Ints:
        """(N,) median class, see `median_class`."""
        return median_class(self.p)

    @property
    def strata(self) -> Ints:
        """(P,) a single stratum, since class frequencies determine kappa's agreement by chance."""
        return np.zeros(self.patients, np.int64)

    def cut(self, place: int) -> ScoredUnits:
        """Two-class units: up to and including class `place` (from 0) against the classes above."""
        folds = tuple(replace(f, p=_above(f.p, place)) for f in self.folds)
        y = (self.y > place).astype(np.int64)
        return ScoredUnits(y, _above(self.p, place), self.patient, ("below", "above"), folds)


@dataclass(frozen=True)
class SurvivalUnits(ScoredUnits):
    """Units with a time to an event.

    `y` (N,) float is the time of the event or of censoring. `p` (N, 1 + T) has the risk (higher:
    earlier event), then survival at each of `times`. `threshold` is that of the risk.

    Attributes:
        event: (N,) whether the event occurred at that time.
        times: T increasing times; the last is the horizon.
    """

    event: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    times: tuple[float, ...] = ()

    def present(self) -> list[int]:
        """Empty: times have no classes."""
        return []

    @property
    def strata(self) -> Ints:
        """(P,) a single stratum: resamples vary in their number of events."""
        return np.zeros(self.patients, np.int64)

    @property
    def is_high(self) -> NDArray[np.bool_]:
        """(N,) whether a unit is in the high-risk group; False for all without a threshold."""
        cut = np.inf if self.threshold is None else self.threshold
        return np.asarray(self.p[:, 0] >= cut)

    def take(self, kept: NDArray[np.bool_]) -> SurvivalUnits:
        """See `ScoredUnits.take`."""
        taken = super().take(kept)
        assert isinstance(taken, SurvivalUnits)
        return replace(taken, event=self.event[kept])


def _above(p: Floats, place: int) -> Floats:
    above = p[:, place + 1 :].sum(axis=1)
    return np.stack([1 - above, above], axis=1)


def median_class(p: Floats) -> Ints:
    """(N,) median class: the highest k with P(class k or above) > 0.5; of (N, K) probabilities."""
    return (p[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:] > MEDIAN).sum(axis=1)


def predicted_class(p: Floats, threshold: Floats | None) -> Ints:
    """Predict classes: by a threshold on the second of two classes, otherwise the most probable.

    Args:
        p: (N, K) class probabilities.
        threshold: (N,) lowest probability that is positive; NaN or None: no threshold.

    Returns:
        (N,) class index.
    """
    most = p.argmax(axis=1)
    if threshold is None or p.shape[1] != 2:
        return most
    return np.where(np.isnan(threshold), most, p[:, 1] >= threshold).astype(np.int64)


def predicted_labels(table: pd.DataFrame) -> NDArray[np.object_] | None:
    """Predicted class or risk group of each row of a prediction table.

    Args:
        table: prediction columns, and `threshold` if there is one.

    Returns:
        (N,) class names or `RISK_GROUPS`; None for numbers, and for risks without a threshold.
    """
    return prediction_kind(table).labels(table)


def _class_labels(table: pd.DataFrame) -> NDArray[np.object_]:
    columns = probability_columns(table)
    threshold = table[THRESHOLD].to_numpy(float) if THRESHOLD in table else None
    words = np.array([column.removeprefix("p_") for column in columns], object)
    if GRADE in table:
        return words[median_class(table[columns].to_numpy(float))]
    return words[predicted_class(table[columns].to_numpy(float), threshold)]


def _risk_labels(table: pd.DataFrame) -> NDArray[np.object_] | None:
    if THRESHOLD not in table:
        return None
    is_high = (table[RISK] >= table[THRESHOLD]).to_numpy(int)
    return np.array(RISK_GROUPS, object)[is_high]


def probability_columns(predictions: pd.DataFrame) -> list[str]:
    """Names of the columns `p_<class>` in their order; of two, the last is positive.

    Raises:
        StainsslError: fewer than two such columns.
    """
    found = [c for c in map(str, predictions.columns) if c.startswith("p_")]
    if len(found) < 2:
        raise StainsslError(
            "Predictions need a column p_<class> for each of at least two classes; found"
            f" {', '.join(map(str, predictions.columns))}."
        )
    return found


def survival_columns(predictions: pd.DataFrame) -> list[str]:
    """Names of the columns of survival at a time (`s_12` …), in their order."""
    return [c for c in map(str, predictions.columns) if c.startswith(SURVIVAL)]


def prediction_columns(predictions: pd.DataFrame) -> list[str]:
    """Names of the prediction columns: `value`, `risk` and `s_<time>` …, or `p_<class>` ….

    Raises:
        StainsslError: none of these, or only one column `p_<class>`.
    """
    return prediction_kind(predictions).columns(predictions)


def average_repeats(predictions: pd.DataFrame, level: str) -> pd.DataFrame:
    """Average predictions over repeats and folds: one row per tile, slide or patient.

    Args:
        predictions: test rows: `patient_id`, `slide_id`, `y`, the prediction columns (see
            `prediction_columns`), `tile` at level tile; optionally `site` and thresholds.
        level: `tile`, `slide` or `patient`.

    Returns:
        The unit's columns, `patient_id`, `site`, `y` (class name, number, or follow-up such as
        `412+`), the prediction columns and thresholds, sorted by unit.

    Raises:
        StainsslError: a unit has two true classes or two patients.
    """
    unit = UNIT[level]
    averaged = [*prediction_columns(predictions), GRADE, THRESHOLD, RULE_OUT]
    kept = [c for c in dict.fromkeys(["patient_id", "slide_id", "site", "y"]) if c in predictions]
    read = predictions if VALUE in predictions else predictions.assign(
        y=predictions["y"].map(class_name)
    )  # fmt: skip
    grouped = read.groupby(unit, sort=True)
    for column in {"patient_id", "y"} - set(unit):
        if (grouped[column].nunique() > 1).any():
            raise StainsslError(f"Predictions: a {level} has two values of {column!r}.")
    how = {c: (c, "first") for c in kept if c not in unit}
    how |= {c: (c, "mean") for c in averaged if c in predictions}
    return grouped.agg(**how).reset_index()


def read_scored(predictions: pd.DataFrame, level: str) -> ScoredUnits:
    """Read a table of test predictions as `ScoredUnits`, or its subclass for the kind of label.

    Args:
        predictions: as in `average_repeats`; without `repeat` and `fold`, one model predicted all
            rows.
        level: `tile`, `slide` or `patient`.

    Raises:
        StainsslError: a true class has no column `p_<class>`, a prediction is not finite, or a
            unit has two true classes or two patients.
    """
    return scored_units(average_repeats(predictions, level), predictions, level)


def scored_units(units: pd.DataFrame, predictions: pd.DataFrame, level: str) -> ScoredUnits:
    """As `read_scored`, given the `units` that `average_repeats` returned for `predictions`."""
    kind = prediction_kind(predictions)
    patient = np.unique(units["patient_id"].to_numpy(str), return_inverse=True)[1]
    folds = _fold_scores(predictions, units, level, kind.columns(predictions))
    return kind.units(units, patient, folds)


def _class_units(units: pd.DataFrame, patient: Ints, folds: tuple[FoldScores, ...]) -> ScoredUnits:
    columns = probability_columns(units)
    classes = tuple(c.removeprefix("p_") for c in columns)
    y = units["y"].map({name: i for i, name in enumerate(classes)})
    if y.isna().any():
        strange = sorted(set(units.loc[y.isna(), "y"].astype(str)))
        raise StainsslError(f"Predictions: true class {strange} has no column p_<class>.")
    p = _finite(units, columns)
    if GRADE in units:
        return OrdinalUnits(np.asarray(y, np.int64), p, patient, classes, folds)
    cuts = [_cut(units, column) for column in (THRESHOLD, RULE_OUT)]
    return ScoredUnits(np.asarray(y, np.int64), p, patient, classes, folds, *cuts)


def _regression_units(
    units: pd.DataFrame, patient: Ints, folds: tuple[FoldScores, ...]
) -> RegressionUnits:
    both = _finite(units, ["y", VALUE])
    return RegressionUnits(both[:, 0], both[:, 1:], patient, (), folds)  # type: ignore[arg-type]


def _survival_units(
    units: pd.DataFrame, patient: Ints, folds: tuple[FoldScores, ...]
) -> SurvivalUnits:
    columns = survival_columns(units)
    time, event = follow_up(units["y"])
    return SurvivalUnits(
        time, _finite(units, [RISK, *columns]), patient, (), folds,  # type: ignore[arg-type]
        _cut(units, THRESHOLD), event=event,
        times=tuple(float(column.removeprefix(SURVIVAL)) for column in columns),
    )  # fmt: skip


@dataclass(frozen=True)
class PredictionKind:
    """How the predictions of one kind of label are read.

    Attributes:
        columns: prediction table → names of its prediction columns.
        units: rows of `average_repeats`, (N,) patient indices, folds → scored units.
        labels: prediction table → (N,) predicted classes or risk groups, or None.
    """

    columns: Callable[[pd.DataFrame], list[str]]
    units: Callable[[pd.DataFrame, Ints, tuple[FoldScores, ...]], ScoredUnits]
    labels: Callable[[pd.DataFrame], NDArray[np.object_] | None]


CLASS_PREDICTIONS = PredictionKind(probability_columns, _class_units, _class_labels)
# A column that identifies the kind of label → how it is read; without any, `CLASS_PREDICTIONS`.
PREDICTION_KINDS: dict[str, PredictionKind] = {
    VALUE: PredictionKind(lambda table: [VALUE], _regression_units, lambda table: None),
    RISK: PredictionKind(
        lambda table: [RISK, *survival_columns(table)], _survival_units, _risk_labels
    ),
}


def prediction_kind(predictions: pd.DataFrame) -> PredictionKind:
    """The kind of a prediction table, identified by its columns."""
    return next(
        (kind for name, kind in PREDICTION_KINDS.items() if name in predictions), CLASS_PREDICTIONS
    )


def _finite(units: pd.DataFrame, columns: Sequence[str]) -> Floats:
    found = units[list(columns)].to_numpy(float)
    if lost := int((~np.isfinite(found)).any(axis=1).sum()):
        raise StainsslError(f"Predictions: {lost} rows are not finite.")
    return found


def _cut(units: pd.DataFrame, column: str) -> Floats | None:
    if column not in units or units[column].isna().any():
        return None
    return units[column].to_numpy(float)


def _fold_scores(
    predictions: pd.DataFrame, units: pd.DataFrame, level: str, columns: Sequence[str]
) -> tuple[FoldScores, ...]:
    if not set(FOLD) <= set(predictions.columns):
        return ()
    unit = UNIT[level]
    place = units[unit].assign(_unit=range(len(units)))
    rows = predictions[[*FOLD, *unit, *columns]].merge(place, on=unit)
    by_fold = rows.groupby([*FOLD, "_unit"], sort=True)[list(columns)].mean().reset_index()
    return tuple(
        FoldScores(int(repeat), mine["_unit"].to_numpy(np.int64), mine[columns].to_numpy(float))
        for (repeat, _), mine in by_fold.groupby(FOLD, sort=True)
    )


def ensemble(predictions: pd.DataFrame, level: str) -> pd.DataFrame:
    """Average the predictions of all fold models, as those of one model.

    For external cohorts, on which every fold's model is tested and none is trained.

    Args:
        predictions: as in `average_repeats`.
        level: `slide` or `patient`.

    Returns:
        As `average_repeats`, with `repeat` and `fold` 0.
    """
    return average_repeats(predictions, level).assign(repeat=0, fold=0)


def site_groups(units: pd.DataFrame) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Iterate over groups: `("all", mask)`, then `("site=a", mask)` if there are several sites.

    Args:
        units: rows of `average_repeats`; masks are (N,) bool.
    """
    yield "all", np.ones(len(units), bool)
    if "site" in units and units["site"].nunique() > 1:
        for site in sorted(units["site"].dropna().unique()):
            yield f"site={site}", (units["site"] == site).to_numpy()
