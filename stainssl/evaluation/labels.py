"""How a label's column is read: classes and their order, and cells that mean unknown."""

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

CODES = frozenset({"-1", "-9", "-99", "99", "-999", "999", "9999"})  # may mean unknown
MIN_FOUND = 3  # classes that an ordered label must have
MAX_CLASSES = 10  # of a task; a label with more is probably a number
# Words for an unknown value, compared regardless of case: those that pandas reads as NaN, and those
# of R, SAS, Excel, TCGA, cBioPortal, registries and laboratories.
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
    """Whether a cell means unknown, regardless of case and surrounding blanks.

    Args:
        value: content of the cell.
        more: words that mean unknown, besides `UNKNOWN`.
    """
    word = class_name(value).strip().casefold()
    return word in UNKNOWN or word in {str(one).strip().casefold() for one in more}


def unknown_cells(column: pd.Series) -> pd.Series:
    """Mask of the cells of a column that mean unknown, as `is_unknown`: bool, also if empty."""
    return column.map(is_unknown).astype(bool)


class LabelKeys(Protocol):
    """The keys of a task that define how its label is read; `time` and `event`: survival."""

    label: Any
    na: Any
    classes: Any
    positive: Any
    time: Any
    event: Any


class MultiLabelKeys(LabelKeys, Protocol):
    """As `LabelKeys`, with the key `labels`."""

    labels: Any


@dataclass(frozen=True)
class Labels:
    """How one label is read from a sheet.

    A label value is text: a class name here, a number or a follow-up in subclasses, `""` if
    unknown.

    Attributes:
        label: name of the column.
        na: words that mean unknown, besides `UNKNOWN`.
        classes: class → the words that belong to it, in the order of the classes; empty: every
            word is a class.
        positive: the positive class of two; None: the one named `positive`, otherwise the last.
    """

    label: str
    na: Sequence[str] = ()
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    positive: str | None = None

    @classmethod
    def of(cls, task: LabelKeys) -> Self:
        """Create from the keys of a task."""
        return cls(task.label, tuple(task.na), dict(task.classes), task.positive)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the sheet from which the label is read."""
        return (self.label,)

    def is_in(self, rows: pd.DataFrame) -> bool:
        """Whether the sheet has the label's columns."""
        return set(self.columns) <= set(rows.columns)

    def words_of(self, rows: pd.DataFrame) -> pd.Series:
        """Label values of the rows of a sheet, as `words`."""
        return self.words(rows[self.label])

    def word(self, value: object) -> str:
        """Class of a cell: `""` if unknown, the word itself if it belongs to no class."""
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
        """Class of every cell; `""` if unknown.

        Raises:
            StainsslError: `classes` is given, and a word neither belongs to one nor is unknown.
        """
        codes, found = pd.factorize(values)  # code -1: NaN, the last of `read`
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
        """Label values of slides for tasks of level `patient`; `""` is kept.

        Args:
            words: label values of slides.
            patients: patient of each slide.
        """
        del patients
        return words

    def order(self, words: Iterable[str]) -> list[str]:
        """Distinct known classes among label values, in order; of two, the last is positive."""
        found = set(words) - {""}
        ordered = [name for name in self.classes if name in found] or class_order(sorted(found))
        if len(ordered) != 2:
            return ordered
        named = [name for name in ordered if name.casefold() == "positive"]
        positive = self.positive or (named[0] if named else ordered[1])
        return sorted(ordered, key=lambda name: name == positive)

    def read(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Replace the label's column by label values; unchanged if the sheet has no such column."""
        return rows.assign(**{self.label: self.words_of(rows)}) if self.is_in(rows) else rows

    def strata(self, patients: pd.DataFrame, folds: int) -> pd.DataFrame:
        """Set `label` to the stratum by which folds are balanced: here the class itself.

        Args:
            patients: `label`, a label value.
            folds: number of folds over which a stratum is distributed.

        Returns:
            The patients, with further columns if a subclass needs them.
        """
        del folds
        return patients

    def check_patients(
        self, patients: pd.DataFrame, at_least: int = 1, where: str = "the task"
    ) -> None:
        """Check that the patients suffice for training and testing.

        Args:
            patients: as returned by `strata`.
            at_least: number of folds.
            where: name of these patients in the error message.

        Raises:
            StainsslError: the patients do not suffice; the message suggests a remedy.
        """
        check_classes(patients, at_least, where)

    def folds(
        self, rows: pd.DataFrame, level: str, split: SplitSettings, seed: int
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The patients of a task and their folds, as returned by `folds.folds_of`.

        Args:
            rows: rows of the task's sheets.
            level, split: keys of the task.
            seed: random seed.

        Raises:
            StainsslError: the sheets do not allow the split.
        """
        read = self.read(rows)
        order = self.order(read[self.label]) if self.label in read else ()
        return folds_of(
            read, level, self.label, split,
            order=order, strata=self.strata, check=self.check_patients, seed=seed,
        )  # fmt: skip

    def ranking_problem(self, patients: pd.DataFrame, folds: pd.DataFrame) -> str | None:
        """Message that no fold can rank its test patients; None if one can.

        Args:
            patients: as returned by `strata`.
            folds: as returned by `make_folds`.
        """
        return ranking_problem(patients, folds)

    def fold_notes(self, patients: pd.DataFrame, folds: pd.DataFrame) -> list[str]:
        """Warnings about folds with too few test patients."""
        return fold_notes(patients, folds)

    def notes(self, task: str) -> list[str]:
        """Notes below the table of results, for a task of that name."""
        del task
        return []

    def problems(self, rows: pd.DataFrame) -> list[str]:
        """Problems of the label in the task's sheets, one sentence each."""
        return label_problems(self, rows)

    def summary(self, rows: pd.DataFrame) -> list[str]:
        """Lines that summarize the label in the task's sheets, and count unknown cells."""
        return label_summary(self, rows)

    def unseen_classes(self, own: pd.Series, words: pd.Series) -> pd.Series:
        """Known label values in `words` that do not occur in `own`, the task's own cohorts."""
        return words[(words != "") & ~words.isin(set(own))]

    def unknown_lines(self, rows: pd.DataFrame, read: pd.Series) -> list[str]:
        """A line that counts the cells read as unknown; empty if there are none.

        Args:
            rows: rows of the task's sheets.
            read: their label values.
        """
        if not (read == "").any():
            return []
        left = rows[read == ""]
        groups = left.groupby(self.cells(left))
        return [f"unknown: {', '.join(f'{word} {counted(mine)}' for word, mine in groups)}"]

    def cells(self, rows: pd.DataFrame) -> pd.Series:
        """Cells of the label, as shown in messages."""
        return rows[self.label].map(shown_cell)


@dataclass(frozen=True)
class OrdinalLabels(Labels):
    """Ordered classes (kind `ordinal`)."""

    def problems(self, rows: pd.DataFrame) -> list[str]:
        """As `Labels.problems`; at least three classes must occur."""
        found = label_problems(self, rows)
        if not found and len(self.order(self.words(rows[self.label]))) < MIN_FOUND:
            found.append(f"label {self.label!r}: kind ordinal needs slides of three classes")
        return found


def label_problems(labels: Labels, rows: pd.DataFrame) -> list[str]:
    """Problems of a label of classes, one sentence each.

    Args:
        labels: how the label is read.
        rows: rows of the task's sheets.
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
    """Lines with the classes of a label, their patients and slides, and the unknown cells.

    Args:
        labels: how the label is read.
        rows: rows of the task's sheets: `patient_id` and the label's column.
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
    """A cell as shown in messages."""
    return repr(str(value)) if class_name(value) else "empty"


def counted(rows: pd.DataFrame) -> str:
    """Number of patients and slides, as `(3 patients, 4 slides)`."""
    patients, slides = rows["patient_id"].nunique(), len(rows)
    return f"({patients} patient{'s' * (patients != 1)}, {slides} slide{'s' * (slides != 1)})"
