"""What the words of a label's column mean: which are classes, in which order, and which unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import pandas as pd

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import (
    SplitSettings,
    check_classes,
    class_name,
    class_order,
    fold_notes,
    folds_of,
    ranking_problem,
)

CODES = frozenset({"-1", "-9", "-99", "99", "-999", "999", "9999"})  # that may mean unknown
MIN_FOUND = 3  # classes of an ordered label
MAX_CLASSES = 10  # of a task; more are rather a number
# Words by which tables say that a value is not known, in any case: those that pandas takes for NaN,
# and those of R, SAS, Excel, TCGA, cBioPortal, registries and laboratories.
UNKNOWN = frozenset(
    word.casefold()
    for word in (
        "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
        "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "n.a.", ".", "-", "--", "?", "unknown",
        "[unknown]", "not available", "[not available]", "not evaluated", "[not evaluated]",
        "not applicable", "[not applicable]", "not reported", "not done", "not known", "missing",
        "indeterminate", "[discrepancy]", "#VALUE!", "#REF!", "#DIV/0!",
        "n.d.", "n/d", "nd", "unk", "not determined", "not assessed", "not evaluable",
        "not performed", "not tested", "pending",
        "k.A.", "k. A.", "keine Angabe", "unbekannt", "inconnu", "desconocido", "onbekend",
    )
)  # fmt: skip


def is_unknown(value: object, more: Iterable[str] = ()) -> bool:
    """Whether a cell of a table says that its value is not known; case and blanks do not count.

    Args:
        value: of a cell.
        more: further words that say so.
    """
    word = class_name(value).strip().casefold()
    return word in UNKNOWN or word in {str(one).strip().casefold() for one in more}


class LabelKeys(Protocol):
    """The keys of a task that say how its label is read; `time` and `event` are of survival."""

    label: Any
    na: Any
    classes: Any
    positive: Any
    time: Any
    event: Any


class SeveralKeys(LabelKeys, Protocol):
    """As `LabelKeys`, of several labels."""

    labels: Any


@dataclass(frozen=True)
class Labels:
    """How the words of one label are read.

    Attributes:
        label: the column.
        na: words that are unknown, beside `UNKNOWN`.
        classes: class → the words that are it, in the classes' order; empty: every word is a class.
        positive: the class that is positive where there are two; None: the one named `positive`,
            else the last.
    """

    label: str
    na: Sequence[str] = ()
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    positive: str | None = None

    @classmethod
    def of(cls, task: LabelKeys) -> Self:
        """How a task of the config reads its label."""
        return cls(task.label, tuple(task.na), dict(task.classes), task.positive)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a sheet that the label is read from."""
        return (self.label,)

    def is_in(self, rows: pd.DataFrame) -> bool:
        """Whether rows of a sheet have the label's columns."""
        return set(self.columns) <= set(rows.columns)

    def words_of(self, rows: pd.DataFrame) -> pd.Series:
        """As `words`, of rows of a sheet."""
        return self.words(rows[self.label])

    def word(self, value: object) -> str:
        """The class of a cell: `""` where it is not known, the word itself where none takes it."""
        word = class_name(value).strip()
        if (found := self._mapped().get(word.casefold())) is not None:
            return found
        return "" if is_unknown(word, self.na) else word

    def _mapped(self) -> dict[str, str]:
        pairs = {name.casefold(): name for name in self.classes}
        for name, words in self.classes.items():
            pairs |= {class_name(word).strip().casefold(): name for word in words}
        return pairs

    def words(self, values: pd.Series) -> pd.Series:
        """The class of every cell, `""` where it is not known.

        Raises:
            StainsslError: `classes` is given and takes neither the word nor is it unknown.
        """
        codes, found = pd.factorize(values)  # code -1: NaN
        read = [self.word(value) for value in found]
        if self.classes:
            left = [i for i, word in enumerate(read) if word and word not in self.classes]
            told = ", ".join(f"{str(found[i])!r} ({int((codes == i).sum())})" for i in left)
            if told:
                raise StainsslError(
                    f"label {self.label!r} has words in no class: {told}. Name each in 'classes',"
                    " or in 'na' if it means unknown."
                )
        return pd.Series([*read, ""], dtype=object).iloc[codes].set_axis(values.index)

    def of_patients(self, words: pd.Series, patients: pd.Series) -> pd.Series:
        """The words of slides where they are their patients'; `""` stays.

        Args:
            words: of slides.
            patients: whose they are.
        """
        del patients
        return words

    def order(self, words: Iterable[str]) -> list[str]:
        """The known classes among some words in their order; of two, the last is positive."""
        found = set(words) - {""}
        ordered = [name for name in self.classes if name in found] or class_order(sorted(found))
        if len(ordered) != 2:
            return ordered
        named = [name for name in ordered if name.casefold() == "positive"]
        positive = self.positive or (named[0] if named else ordered[1])
        return sorted(ordered, key=lambda name: name == positive)

    def read(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of a sheet with the label read as column `label`; as they are without one."""
        return rows.assign(**{self.label: self.words_of(rows)}) if self.is_in(rows) else rows

    def strata(self, patients: pd.DataFrame, folds: int) -> pd.DataFrame:
        """The patients of a task, whose `label` folds are balanced by: their class.

        Args:
            patients: `label`, a class word.
            folds: that every stratum is to be spread over.
        """
        del folds
        return patients

    def check_patients(
        self, patients: pd.DataFrame, at_least: int = 1, where: str = "the task"
    ) -> None:
        """Refuse patients that nothing can be learnt from.

        Args:
            patients: as `strata` gives them.
            at_least: folds that they are spread over.
            where: the words for them.

        Raises:
            StainsslError: what they are, and what to do.
        """
        check_classes(patients, at_least, where)

    def folds(
        self, rows: pd.DataFrame, level: str, split: SplitSettings, seed: int
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The patients of a task and their folds, as `folds.folds_of` gives them.

        Args:
            rows: of the task's sheets.
            level, split: of the task.
            seed: of every draw.

        Raises:
            StainsslError: the sheets do not carry the split.
        """
        read = self.read(rows)
        order = self.order(read[self.label]) if self.label in read else ()
        return folds_of(
            read, level, self.label, split,
            order=order, strata=self.strata, check=self.check_patients, seed=seed,
        )  # fmt: skip

    def ranking_problem(self, patients: pd.DataFrame, folds: pd.DataFrame) -> str | None:
        """Why no fold could rank its test patients; None where one can.

        Args:
            patients: as `strata` gives them.
            folds: as `make_folds` gives.
        """
        return ranking_problem(patients, folds)

    def fold_notes(self, patients: pd.DataFrame, folds: pd.DataFrame) -> list[str]:
        """Warnings of folds that are too small to tell much, a sentence each."""
        return fold_notes(patients, folds)

    def notes(self, task: str) -> list[str]:
        """What a table says below itself of a task of that name."""
        del task
        return []

    def problems(self, rows: pd.DataFrame) -> list[str]:
        """What is wrong with the label's words, a sentence each; of rows of the task's sheets."""
        return label_problems(self, rows)

    def summary(self, rows: pd.DataFrame) -> list[str]:
        """What the label is in the task's sheets, and what was read as unknown."""
        return label_summary(self, rows)

    def strangers(self, own: pd.Series, words: pd.Series) -> pd.Series:
        """Those of some known words that do not occur in the task's own cohorts."""
        return words[(words != "") & ~words.isin(set(own))]

    def unknown_lines(self, rows: pd.DataFrame, read: pd.Series) -> list[str]:
        """A line that counts what was read as unknown, where anything was.

        Args:
            rows: of the task's sheets.
            read: their words.
        """
        if not (read == "").any():
            return []
        left = rows[read == ""]
        groups = left.groupby(self.cells(left))
        return [f"unknown: {', '.join(f'{word} {counted(mine)}' for word, mine in groups)}"]

    def cells(self, rows: pd.DataFrame) -> pd.Series:
        """What rows of a sheet have as label, as a line shows it."""
        return rows[self.label].map(shown_cell)


@dataclass(frozen=True)
class OrderedLabels(Labels):
    """As `Labels`, of classes whose order is learnt and judged."""

    def problems(self, rows: pd.DataFrame) -> list[str]:
        """As `Labels.problems`; three of the classes at least must be there."""
        found = label_problems(self, rows)
        if not found and len(self.order(self.words(rows[self.label]))) < MIN_FOUND:
            found.append(f"label {self.label!r}: kind ordinal needs slides of three classes")
        return found


def label_problems(labels: Labels, rows: pd.DataFrame) -> list[str]:
    """What is wrong with a label's words, a sentence each.

    Args:
        labels: how they are read.
        rows: of the task's sheets.
    """
    try:
        words = sorted(set(labels.words(rows[labels.label])) - {""})
    except StainsslError as error:
        return [str(error)]
    found = []
    by_case: dict[str, list[str]] = {}
    for word in words:
        by_case.setdefault(word.casefold(), []).append(word)
    for same in by_case.values():
        if len(same) > 1:
            found.append(
                f"classes {' and '.join(map(repr, same))} of {labels.label!r} differ only in case:"
                " use one of them, or name the task's 'classes', which ignore case."
            )
    if len(words) > MAX_CLASSES:
        found.append(
            f"label {labels.label!r} has {len(words)} classes ({', '.join(words[:5])} …): is it a"
            " number? Group them by 'classes', or name another column."
        )
    if labels.positive and labels.positive not in words:
        found.append(
            f"positive is {labels.positive!r}, but {labels.label!r} has the classes"
            f" {', '.join(words) or 'none'}."
        )
    return found


def label_summary(labels: Labels, rows: pd.DataFrame) -> list[str]:
    """The classes of a label with their patients and slides, and what was read as unknown.

    Args:
        labels: how they are read.
        rows: of the task's sheets: `patient_id` and the label's column.
    """
    if labels.label not in rows:
        return ["labels are from the annotations"]
    read = labels.words(rows[labels.label])
    parts = [f"{name} {counted(rows[read == name])}" for name in labels.order(read)]
    lines = [f"classes: {', '.join(parts)}"]
    if codes := sorted(CODES & set(read)):
        lines.append(f"{', '.join(codes)}: if that means unknown, name it in the task's 'na'")
    return lines + labels.unknown_lines(rows, read)


def shown_cell(value: object) -> str:
    """A cell as a line shows it."""
    return repr(str(value)) if class_name(value) else "empty"


def counted(rows: pd.DataFrame) -> str:
    """`(3 patients, 4 slides)` of rows of a sheet."""
    patients, slides = rows["patient_id"].nunique(), len(rows)
    return f"({patients} patient{'s' * (patients != 1)}, {slides} slide{'s' * (slides != 1)})"
