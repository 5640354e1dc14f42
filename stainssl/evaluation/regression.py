"""Labels that are numbers (kind `regression`): how they are read, checked and stratified."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import VALUE, class_name, tested
from stainssl.evaluation.labels import CODES, Labels, counted, is_unknown

STRATA = 5  # of equal size, by which folds are balanced
FEW_NUMBERS = 4  # a correlation over fewer test patients says very little
SHOWN = 5  # rows that a message names; the rest are counted
# No thousands separators: 1.234 and 1,234 are both a little more than one.
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")


def as_number(word: str) -> float | None:
    """Parse a number with a decimal point or comma; None if it is not a finite number.

    Args:
        word: content of a cell, without surrounding blanks.
    """
    if not NUMBER.fullmatch(word):
        return None
    number = float(word.replace(",", "."))
    return number if np.isfinite(number) else None


@dataclass(frozen=True)
class RegressionLabels(Labels):
    """How a numeric label is read; label values are numbers in a uniform spelling, as `12.5`."""

    def word(self, value: object) -> str:
        """Number in a cell, as text: `""` if unknown, the word itself if it is not a number."""
        word = class_name(value).strip()
        if is_unknown(word, self.na):
            return ""
        number = as_number(word)
        return word if number is None else class_name(number)

    def words(self, values: pd.Series) -> pd.Series:
        """Number in every cell, as text; `""` if unknown.

        Raises:
            StainsslError: cells are neither numbers nor unknown; the message names them.
        """
        codes, found = pd.factorize(values)  # code -1: NaN
        read = pd.Series([*map(self.word, found), ""], dtype=object)
        words = read.iloc[codes].set_axis(values.index)
        if told := self._text(values, words, [f"row {row + 1}" for row in range(len(values))]):
            raise StainsslError(told)
        return words

    def _text(self, values: pd.Series, words: pd.Series, names: Sequence[str]) -> str:
        """Error message about cells that are not numbers, with `names` of rows; empty if none."""
        is_text = {word for word in words.unique() if word and as_number(word) is None}
        rows = np.flatnonzero(words.isin(is_text))
        if not len(rows):
            return ""
        named = ", ".join(f"{names[row]}: {str(values.iloc[row])!r}" for row in rows[:SHOWN])
        more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        return (
            f"label {self.label!r} must be a number (kind: regression) but is text in {len(rows)}"
            f" row(s), {named}{more}. Correct them, name unknown ones in 'na', or use"
            " 'kind: classification'."
        )

    def order(self, words: Iterable[str]) -> list[str]:
        """Empty: numbers have no classes."""
        del words
        return []

    def strata(self, patients: pd.DataFrame, folds: int) -> pd.DataFrame:
        """Add the number as `value`, and set `label` to its stratum.

        Strata have equal size. There are five, or fewer if a stratum would have fewer patients
        than there are folds. Equal numbers may be in different strata.

        Args:
            patients: `label`, numbers as text.
            folds: number of folds over which a stratum is distributed.
        """
        value = pd.to_numeric(patients["label"]).astype(float)
        count = max(min(STRATA, len(patients) // max(folds, 1)), 1)
        place = value.rank(method="first").to_numpy() - 1
        stratum = (place * count // max(len(patients), 1)).astype(int).astype(str)
        return patients.assign(**{VALUE: value, "label": stratum})

    def check_patients(
        self, patients: pd.DataFrame, at_least: int = 1, where: str = "the task"
    ) -> None:
        """See `Labels.check_patients`: values must differ, and each fold needs a patient."""
        if (found := patients[VALUE].nunique()) < 2:
            raise StainsslError(
                f"{where} has {len(patients)} patient(s) with {found} value(s). Regression needs"
                " different values: add labelled patients, or correct the label column."
            )
        if len(patients) < at_least:
            raise StainsslError(
                f"{where} has fewer patients ({len(patients)}) than folds ({at_least}): use"
                " fewer folds, or add patients."
            )

    def ranking_problem(self, patients: pd.DataFrame, folds: pd.DataFrame) -> str | None:
        """See `Labels.ranking_problem`: a fold must test patients with different values."""
        if (tested(patients, folds, VALUE)[VALUE].nunique() > 1).any():
            return None
        return (
            "no fold tests patients of two values, so Pearson's and Spearman's correlations, which"
            " are computed over the test patients of one model, are undefined. Use 'kind: cv',"
            " another 'group', or 'metrics: [mae]'."
        )

    def fold_notes(self, patients: pd.DataFrame, folds: pd.DataFrame) -> list[str]:
        """See `Labels.fold_notes`: folds that test fewer than `FEW_NUMBERS` patients."""
        counts = tested(patients, folds, VALUE).size()
        few = int((counts < FEW_NUMBERS).sum())
        told = f"{few} of {len(counts)} folds test fewer than {FEW_NUMBERS} patients and add little"
        return [f"{told} to correlations. Use fewer folds, or more repeats."] if few else []

    def problems(self, rows: pd.DataFrame) -> list[str]:
        """See `Labels.problems`: cells that are not numbers (with slides), or equal values."""
        read = rows[self.label].map(self.word)
        if told := self._text(rows[self.label], read, [f"slide {n}" for n in rows["slide_id"]]):
            return [told]
        words = set(read) - {""}
        if len(words) < 2:
            return [
                f"label {self.label!r} has {len(words) or 'no'} known value"
                f" ({', '.join(words) or 'none'}): regression needs different values."
            ]
        return []

    def summary(self, rows: pd.DataFrame) -> list[str]:
        """See `Labels.summary`: range, median and quartiles of the numbers, and unknown cells."""
        read = self.words(rows[self.label])
        known = read != ""
        numbers = pd.to_numeric(read[known])
        middle = "–".join(f"{numbers.quantile(q):g}" for q in (0.25, 0.75))
        line = (
            f"numbers: {numbers.min():g} to {numbers.max():g}, median {numbers.median():g},"
            f" quartiles {middle} {counted(rows[known])}"
        )
        codes = sorted(CODES & set(read))
        told = f"{', '.join(codes)}: if that means unknown, name it in the task's 'na'"
        return [line, *([told] if codes else []), *self.unknown_lines(rows, read)]

    def unseen_classes(self, own: pd.Series, words: pd.Series) -> pd.Series:
        """Empty: a number need not occur in the task's own cohorts."""
        del own
        return words.head(0)
