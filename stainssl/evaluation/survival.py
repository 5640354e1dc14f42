"""Times to an event as labels (kind `survival`): how they are read, checked and stratified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import class_name, tested
from stainssl.evaluation.follow_up import follow_up, follow_up_word, horizons_of, is_comparable
from stainssl.evaluation.labels import LabelKeys, Labels, counted, is_unknown, shown_cell
from stainssl.evaluation.regression import SHOWN, as_number

# Words of the event column, regardless of case; the task's `classes` adds others.
EVENT_WORDS = {"event": ("1", "true", "yes"), "censored": ("0", "false", "no")}
TIME, EVENT = "_time", "_event"  # columns added to a task's patients
FEW_EVENTS = 4  # a concordance with fewer events per fold says very little
UNKNOWN = float("nan")


@dataclass(frozen=True)
class SurvivalLabels(Labels):
    """How a follow-up is read; label values are those of the module `follow_up` (`412`, `412+`).

    Attributes:
        time: column of the time to the event or to the last contact.
        event: column that says which of the two it is.
    """

    time: str = ""
    event: str = ""

    @classmethod
    def of(cls, task: LabelKeys) -> Self:
        """See `Labels.of`."""
        name = f"{task.time} and {task.event}"
        return cls(name, tuple(task.na), dict(task.classes), None, task.time, task.event)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Labels.columns`."""
        return self.time, self.event

    def words(self, values: pd.Series) -> pd.Series:
        """Label values that have been read already."""
        return values.map(class_name)

    def words_of(self, rows: pd.DataFrame) -> pd.Series:
        """Follow-up of every row, as text; `""` if time or event is unknown.

        Raises:
            StainsslError: times that are not numbers from 0 on, or words of the event column that
                mean neither event nor censored nor unknown; the message names them.
        """
        if told := self._cell_problems(rows):
            raise StainsslError("\n".join(told))
        time, event = (pd.to_numeric(column) for column in self._read(rows))
        known = (time.notna() & event.notna()).tolist()
        words = [
            follow_up_word(t, e == 1) if is_known else ""
            for t, e, is_known in zip(time.tolist(), event.tolist(), known, strict=True)
        ]
        return pd.Series(words, rows.index, dtype=object)

    def _read(self, rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
        """Times, and events as 1 or 0: NaN if unknown, None if the cell cannot be read."""
        time = [self._time_of(value) for value in rows[self.time]]
        event = [self._event_of(value) for value in rows[self.event]]
        return pd.Series(time, rows.index, object), pd.Series(event, rows.index, object)

    def _time_of(self, value: object) -> float | None:
        word = class_name(value).strip()
        if is_unknown(word, self.na):
            return UNKNOWN
        number = as_number(word)
        return number if number is not None and number >= 0 else None

    def _event_of(self, value: object) -> float | None:
        word = class_name(value).strip().casefold()
        for found, usual in EVENT_WORDS.items():
            more = self.classes.get(found, ())
            if word in {class_name(one).strip().casefold() for one in (*usual, *more)}:
                return float(found == "event")
        return UNKNOWN if is_unknown(word, self.na) else None

    def _cell_problems(self, rows: pd.DataFrame) -> list[str]:
        time, event = self._read(rows)
        found = []
        if (bad := time.map(lambda one: one is None)).any():
            found.append(
                f"time {self.time!r} must be a number from 0 on (kind: survival) but is not in"
                f" {int(bad.sum())} row(s), {_named_cells(rows[bad], self.time)}. Correct them, or"
                " name unknown ones in 'na'."
            )
        if (bad := event.map(lambda one: one is None)).any():
            words = rows.loc[bad, self.event].astype(str).value_counts()
            told = ", ".join(f"{word!r} ({count})" for word, count in words.items())
            found.append(
                f"event {self.event!r} has words that are neither an event (1, true, yes) nor"
                f" censored (0, false, no): {told}. Name them in 'classes: {{event: [...],"
                " censored: [...]}', or in 'na' if they mean unknown."
            )
        return found

    def order(self, words: Iterable[str]) -> list[str]:
        """Empty: times have no classes."""
        del words
        return []

    def strata(self, patients: pd.DataFrame, folds: int) -> pd.DataFrame:
        """Add `TIME` and `EVENT`, and set `label` to `event` or `censored`.

        Args:
            patients: `label`, follow-ups as text.
            folds: not used.
        """
        del folds
        time, event = follow_up(patients["label"])
        label = np.where(event, "event", "censored")
        return patients.assign(**{TIME: time, EVENT: event, "label": label})

    def check_patients(
        self, patients: pd.DataFrame, at_least: int = 1, where: str = "the task"
    ) -> None:
        """See `Labels.check_patients`: at least one event per fold, and a comparable pair."""
        events = int(patients[EVENT].sum())
        has = f"{where} has {len(patients)} patient(s) and {events} event(s) of {self.event!r}"
        if not events:
            raise StainsslError(
                f"{has}: a survival model needs events. Add patients, or correct the column."
            )
        if events < at_least:
            raise StainsslError(
                f"{has}, fewer than folds ({at_least}), each of which must test one. Use at"
                f" most {events} folds, or add patients."
            )
        if not is_comparable(patients[TIME].to_numpy(), patients[EVENT].to_numpy(bool)):
            raise StainsslError(
                f"{has}, and no patient followed up longer: there is no comparable pair. Add"
                " patients."
            )

    def ranking_problem(self, patients: pd.DataFrame, folds: pd.DataFrame) -> str | None:
        """See `Labels.ranking_problem`: a fold must test a comparable pair of patients."""
        for _, rows in tested(patients, folds, TIME, EVENT):
            if is_comparable(rows[TIME].to_numpy(), rows[EVENT].to_numpy(bool)):
                return None
        return (
            "no fold has a comparable pair of test patients, so concordance and AUROC, which rank"
            " the test patients of one model, are undefined. Use 'kind: cv', another 'group', or"
            " 'metrics: [integrated_brier]'."
        )

    def fold_notes(self, patients: pd.DataFrame, folds: pd.DataFrame) -> list[str]:
        """See `Labels.fold_notes`: folds that test fewer than `FEW_EVENTS` events."""
        counts = tested(patients, folds, EVENT)[EVENT].sum()
        few = int((counts < FEW_EVENTS).sum())
        told = f"{few} of {len(counts)} folds test fewer than {FEW_EVENTS} events and add little"
        return [f"{told} to ranking metrics. Use fewer folds, or more repeats."] if few else []

    def notes(self, task: str) -> list[str]:
        """See `Labels.notes`: the unit of times."""
        return [f"{task}: times are in the unit of the sheet's column {self.time!r}."]

    def problems(self, rows: pd.DataFrame) -> list[str]:
        """See `Labels.problems`: unreadable cells, patients with two follow-ups, no event."""
        if found := self._cell_problems(rows):
            return found
        words = self.words_of(rows)
        known = rows.assign(word=words)[words != ""]
        several = known.groupby("patient_id")["word"].unique()
        several = several[several.map(len) > 1]
        if len(several):
            named = ", ".join(f"{who} ({' and '.join(w)})" for who, w in several[:SHOWN].items())
            return [
                f"{len(several)} patient(s) have two follow-ups in {self.time!r} and"
                f" {self.event!r} ('+': censored): {named}. Each needs one: correct the sheet."
            ]
        if not horizons_of(known["word"].unique()):
            return [
                f"none of {known['patient_id'].nunique()} patients has an event of {self.event!r}"
                f" after time 0 of {self.time!r}: a survival model needs events."
            ]
        return []

    def summary(self, rows: pd.DataFrame) -> list[str]:
        """See `Labels.summary`: events, censored, median follow-up, and unknown cells."""
        read = self.words_of(rows)
        known = rows.assign(word=read)[read != ""]
        patients = known.drop_duplicates("patient_id")
        time, event = follow_up(patients["word"])
        line = (
            f"follow-up: {int(event.sum())} events, {int((~event).sum())} censored, median"
            f" follow-up {_median_follow_up(time, event)} ({self.time!r}) {counted(known)}"
        )
        return [line, *self.unknown_lines(rows, read)]

    def cells(self, rows: pd.DataFrame) -> pd.Series:
        """See `Labels.cells`: only cells that are unknown, since known times all differ."""
        names = (self.time, self.event)
        read = zip(*self._read(rows), *(rows[name].map(shown_cell) for name in names), strict=True)
        told = [
            " and ".join(
                f"{name} {cell}"
                for name, value, cell in zip(names, cells[:2], cells[2:], strict=True)
                if pd.isna(value)
            )
            for cells in read
        ]
        return pd.Series(told, rows.index, dtype=object)

    def unseen_classes(self, own: pd.Series, words: pd.Series) -> pd.Series:
        """Empty: a time need not occur in the task's own cohorts."""
        del own
        return words.head(0)


def _named_cells(rows: pd.DataFrame, column: str) -> str:
    """First cells as `slide a: 'x'`, and the number of the rest."""
    names: Sequence[str] = [f"row {place}" for place in rows.index]
    if "slide_id" in rows:
        names = [f"slide {name}" for name in rows["slide_id"]]
    cells = rows[column].astype(str).tolist()
    told = ", ".join(f"{n}: {c!r}" for n, c in zip(names[:SHOWN], cells[:SHOWN], strict=True))
    return told + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")


def _median_follow_up(time: np.ndarray, event: np.ndarray) -> str:
    """Median follow-up by the reverse Kaplan–Meier method (Schemper and Smith, 1996)."""
    if event.all():
        return "unknown (nobody is censored)"
    from scipy.stats import CensoredData, ecdf  # takes half a second; only this needs it

    curve = ecdf(CensoredData.right_censored(time, event)).sf
    below = np.flatnonzero(curve.probabilities <= 0.5)
    return f"{curve.quantiles[below[0]]:g}" if len(below) else "not reached"
