"""Predictions as they are evaluated: averaged over repeats, and as each fold's model made them."""

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
SURVIVAL = "s_"  # before the time at which a column says survival
RISK_GROUPS = ("low", "high")


@dataclass(frozen=True)
class FoldScores:
    """One fold model's predictions of its test units: scores can be ranked only within a fold.

    Attributes:
        repeat: of the split.
        unit: (n,) rows of `ScoredUnits`.
        p: (n, K) probability of each class; (n, 1) the number that was said; of survival the risk,
            then survival at each time.
    """

    repeat: int
    unit: Ints
    p: Floats


@dataclass(frozen=True)
class ScoredUnits:
    """Units (tiles, slides or patients) with their true class, scores and patients.

    Attributes:
        y: (N,) true class, an index into `classes`.
        p: (N, K) probability of each class, averaged over repeats.
        patient: (N,) index of each unit's patient, 0 … P-1.
        classes: K class words; of two, the second is the positive one.
        folds: what each fold's model said; empty where one model scored all units.
        threshold: (N,) probability from which on a unit is called positive (two classes), as the
            validation patients chose it; None: the most probable class is called.
        rule_out: (N,) likewise for a stated sensitivity; None where nobody chose it.
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
        """(N,) the class called: by the threshold, else the most probable."""
        return called(self.p, self.threshold)

    @property
    def ranked(self) -> tuple[FoldScores, ...]:
        """`folds`, or all units as one fold."""
        return self.folds or (FoldScores(0, np.arange(len(self.y)), self.p),)

    @property
    def is_by_patient(self) -> bool:
        """Whether every patient is one unit."""
        return self.patients == len(self.y)

    @property
    def is_cross_validated(self) -> bool:
        """Whether several models were tested, each on patients that trained the others."""
        repeats = [fold.repeat for fold in self.ranked]
        return len(repeats) > len(set(repeats))

    def present(self) -> list[int]:
        """Classes that some unit has."""
        return np.unique(self.y).tolist()

    @property
    def strata(self) -> Ints:
        """(P,) a patient's class, where every patient has one; else one stratum."""
        low = np.full(self.patients, len(self.classes))
        high = np.full(self.patients, -1)
        np.minimum.at(low, self.patient, self.y)
        np.maximum.at(high, self.patient, self.y)
        return high if np.array_equal(low, high) else np.zeros(self.patients, int)

    def take(self, kept: NDArray[np.bool_]) -> ScoredUnits:
        """The units where (N,) `kept` is true."""
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
        """The same units as if one model had scored them all: for the pooled figures."""
        return replace(self, folds=())


@dataclass(frozen=True)
class NumberUnits(ScoredUnits):
    """Units whose label is a number: `y` (N,) float the true one, `p` (N, 1) the predicted one."""

    @property
    def value(self) -> Floats:
        """(N,) predicted numbers, averaged over repeats."""
        return self.p[:, 0]

    def present(self) -> list[int]:
        """Numbers have no classes."""
        return []

    @property
    def strata(self) -> Ints:
        """(P,) one stratum."""
        return np.zeros(self.patients, np.int64)


@dataclass(frozen=True)
class OrderedUnits(ScoredUnits):
    """Units of ordered classes: each cut between two of them is a task of two classes."""

    @property
    def predicted(self) -> Ints:
        """(N,) the median class: how many cuts it more probably lies above than not."""
        return called_in_order(self.p)

    @property
    def strata(self) -> Ints:
        """(P,) one stratum: how many are of each class counts for the agreement by chance."""
        return np.zeros(self.patients, np.int64)

    def cut(self, place: int) -> ScoredUnits:
        """The units as a task of two classes: at most class `place` (from 0), or above it."""
        folds = tuple(replace(f, p=_above(f.p, place)) for f in self.folds)
        y = (self.y > place).astype(np.int64)
        return ScoredUnits(y, _above(self.p, place), self.patient, ("below", "above"), folds)


@dataclass(frozen=True)
class SurvivalUnits(ScoredUnits):
    """Units whose label is a follow-up.

    `y` (N,) float is the time of the event or of censoring; `p` (N, 1 + T) the risk, the larger the
    sooner, and survival at each of `times`.

    Attributes:
        event: (N,) whether the event came at that time.
        times: T rising times; the last is the horizon.
    """

    event: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    times: tuple[float, ...] = ()

    def present(self) -> list[int]:
        """Times have no classes."""
        return []

    @property
    def strata(self) -> Ints:
        """(P,) one stratum: how many have the event varies with the patients."""
        return np.zeros(self.patients, np.int64)

    @property
    def is_high(self) -> NDArray[np.bool_]:
        """(N,) whether a unit is of the group of high risk: all or none without a threshold."""
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


def called_in_order(p: Floats) -> Ints:
    """(N,) the median class of (N, K) probabilities of ordered classes."""
    return (p[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:] > MEDIAN).sum(axis=1)


def called(p: Floats, threshold: Floats | None) -> Ints:
    """The class called: of two the second from the threshold on, else the most probable.

    Args:
        p: (N, K) probability of each class.
        threshold: (N,) of the second class, where it is not NaN; None: there is none.

    Returns:
        (N,) index of a class.
    """
    most = p.argmax(axis=1)
    if threshold is None or p.shape[1] != 2:
        return most
    return np.where(np.isnan(threshold), most, p[:, 1] >= threshold).astype(np.int64)


def words_called(table: pd.DataFrame) -> NDArray[np.object_] | None:
    """What each row of a table calls; None where answers call nothing, as numbers.

    Args:
        table: answers, and `threshold` where there is one.

    Returns:
        (N,) class words, or the group of risk.
    """
    return answer_of(table).words(table)


def _class_words(table: pd.DataFrame) -> NDArray[np.object_]:
    columns = probability_columns(table)
    threshold = table[THRESHOLD].to_numpy(float) if THRESHOLD in table else None
    words = np.array([column.removeprefix("p_") for column in columns], object)
    if GRADE in table:
        return words[called_in_order(table[columns].to_numpy(float))]
    return words[called(table[columns].to_numpy(float), threshold)]


def _risk_words(table: pd.DataFrame) -> NDArray[np.object_] | None:
    if THRESHOLD not in table:
        return None
    is_high = (table[RISK] >= table[THRESHOLD]).to_numpy(int)
    return np.array(RISK_GROUPS, object)[is_high]


def probability_columns(predictions: pd.DataFrame) -> list[str]:
    """The columns `p_<class>` as they stand; of two, the last is positive.

    Raises:
        StainsslError: fewer than two.
    """
    found = [c for c in map(str, predictions.columns) if c.startswith("p_")]
    if len(found) < 2:
        raise StainsslError(
            "Predictions need a column p_<class> for each of at least two classes; found"
            f" {', '.join(map(str, predictions.columns))}."
        )
    return found


def survival_columns(predictions: pd.DataFrame) -> list[str]:
    """The columns of survival at a time, `s_12` …, as they stand."""
    return [c for c in map(str, predictions.columns) if c.startswith(SURVIVAL)]


def answer_columns(predictions: pd.DataFrame) -> list[str]:
    """The columns that hold an answer: `value` of a number, `risk` and `s_<time>`…, `p_<class>`.

    Raises:
        StainsslError: none is there.
    """
    return answer_of(predictions).columns(predictions)


def average_repeats(predictions: pd.DataFrame, level: str) -> pd.DataFrame:
    """One row per tile, slide or patient: its answers averaged over repeats and folds.

    Args:
        predictions: test rows: `patient_id`, `slide_id`, `y`, the answer's columns, `tile` at
            level tile; `site` and thresholds are kept where they are there.
        level: `tile`, `slide` or `patient`.

    Returns:
        The unit's columns, `patient_id`, `site`, `y` (class word, number, or follow-up), the
        answer's columns, and thresholds, sorted by unit.

    Raises:
        StainsslError: a unit has two true classes or two patients.
    """
    unit = UNIT[level]
    averaged = [*answer_columns(predictions), GRADE, THRESHOLD, RULE_OUT]
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
    """`ScoredUnits` of a table of test predictions, of the class that its columns tell.

    Args:
        predictions: as `average_repeats` takes them; without `repeat` and `fold` one model scored
            all rows.
        level: `tile`, `slide` or `patient`.

    Raises:
        StainsslError: a true class has no `p_<class>`, a probability is not finite, or a unit has
            two true classes or two patients.
    """
    return scored_units(average_repeats(predictions, level), predictions, level)


def scored_units(units: pd.DataFrame, predictions: pd.DataFrame, level: str) -> ScoredUnits:
    """As `read_scored` of units that `average_repeats` gave already, in their order."""
    answer = answer_of(predictions)
    patient = np.unique(units["patient_id"].to_numpy(str), return_inverse=True)[1]
    folds = _fold_scores(predictions, units, level, answer.columns(predictions))
    return answer.units(units, patient, folds)


def _class_units(units: pd.DataFrame, patient: Ints, folds: tuple[FoldScores, ...]) -> ScoredUnits:
    columns = probability_columns(units)
    classes = tuple(c.removeprefix("p_") for c in columns)
    y = units["y"].map({name: i for i, name in enumerate(classes)})
    if y.isna().any():
        strange = sorted(set(units.loc[y.isna(), "y"].astype(str)))
        raise StainsslError(f"Predictions: true class {strange} has no column p_<class>.")
    p = _finite(units, columns)
    if GRADE in units:
        return OrderedUnits(np.asarray(y, np.int64), p, patient, classes, folds)
    cuts = [_cut(units, column) for column in (THRESHOLD, RULE_OUT)]
    return ScoredUnits(np.asarray(y, np.int64), p, patient, classes, folds, *cuts)


def _number_units(units: pd.DataFrame, patient: Ints, folds: tuple[FoldScores, ...]) -> NumberUnits:
    both = _finite(units, ["y", VALUE])
    return NumberUnits(both[:, 0], both[:, 1:], patient, (), folds)  # type: ignore[arg-type]


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
class AnswerKind:
    """What predictions of one kind of label hold.

    Attributes:
        columns: of a table of predictions, those of the answer.
        units: rows of `average_repeats`, (N,) index of their patients, and the folds → the units.
        words: what each row of a table calls; None where nothing is called.
    """

    columns: Callable[[pd.DataFrame], list[str]]
    units: Callable[[pd.DataFrame, Ints, tuple[FoldScores, ...]], ScoredUnits]
    words: Callable[[pd.DataFrame], NDArray[np.object_] | None]


OF_CLASSES = AnswerKind(probability_columns, _class_units, _class_words)
# Column by which a table of predictions says whose it is → what it holds; without, of classes.
ANSWERS: dict[str, AnswerKind] = {
    VALUE: AnswerKind(lambda table: [VALUE], _number_units, lambda table: None),
    RISK: AnswerKind(lambda table: [RISK, *survival_columns(table)], _survival_units, _risk_words),
}


def answer_of(predictions: pd.DataFrame) -> AnswerKind:
    """What a table of predictions holds, by its columns."""
    return next((kind for name, kind in ANSWERS.items() if name in predictions), OF_CLASSES)


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
    """Predictions of models that were all tested on all units: their average is one model's.

    For external cohorts, which every fold's model is tested on and none is trained on.

    Args:
        predictions: as `average_repeats` takes them, and returned likewise.
        level: `slide` or `patient`.
    """
    return average_repeats(predictions, level).assign(repeat=0, fold=0)


def site_groups(units: pd.DataFrame) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """`("all", everything)`, then `("site=a", its rows)` for each site where there are two.

    Args:
        units: rows of `average_repeats`.
    """
    yield "all", np.ones(len(units), bool)
    if "site" in units and units["site"].nunique() > 1:
        for site in sorted(units["site"].dropna().unique()):
            yield f"site={site}", (units["site"] == site).to_numpy()
