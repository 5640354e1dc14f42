"""A number as a label: how its cells are read, which are problems, and its strata for folds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import VALUE, class_name, tested
from stainssl.evaluation.labels import CODES, Labels, counted, is_unknown

STRATA = 5  # of equal size, that folds are balanced by
FEW_NUMBERS = 4  # patients of a fold, among whom a correlation tells next to nothing
SHOWN = 5  # rows a message names before it counts the rest
# Thousands are not grouped: 1.234 and 1,234 are both a little more than one.
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")


def as_number(word: str) -> float | None:
    """The number that a cell says, decimal comma or point; None where it says none.

    Args:
        word: of a cell, without blanks around it.
    """
    if not NUMBER.fullmatch(word):
        return None
    number = float(word.replace(",", "."))
    return number if np.isfinite(number) else None


@dataclass(frozen=True)
class NumberLabels(Labels):
    """How a label that is a number is read; its words are numbers in one spelling, as `12.5`."""

    def word(self, value: object) -> str:
        """The number of a cell: `""` where it is not known, the word itself where it is none."""
        word = class_name(value).strip()
        if is_unknown(word, self.na):
            return ""
        number = as_number(word)
        return word if number is None else class_name(number)

    def words(self, values: pd.Series) -> pd.Series:
        """The number of every cell as its word, `""` where it is not known.

        Raises:
            StainsslError: cells that are neither a number nor unknown; names them.
        """
        codes, found = pd.factorize(values)  # code -1: NaN
        read = pd.Series([*map(self.word, found), ""], dtype=object)
        words = read.iloc[codes].set_axis(values.index)
        if told := self._text(values, words, [f"row {row + 1}" for row in range(len(values))]):
            raise StainsslError(told)
        return words

    def _text(self, values: pd.Series, words: pd.Series, names: Sequence[str]) -> str:
        """A sentence about cells that are text, by the names of their rows; empty without any."""
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
        """Numbers have no classes."""
        del words
        return []

    def strata(self, patients: pd.DataFrame, folds: int) -> pd.DataFrame:
        """The patients with their number as `value`, and as `label` the stratum that it lies in.

        Strata are of equal size, five, or fewer where a stratum would have fewer patients than
        folds; equal numbers may lie in two.

        Args:
            patients: `label`, the numbers' words.
            folds: that every stratum is to be spread over.
        """
        value = pd.to_numeric(patients["label"]).astype(float)
        count = max(min(STRATA, len(patients) // max(folds, 1)), 1)
        place = value.rank(method="first").to_numpy() - 1
        stratum = (place * count // max(len(patients), 1)).astype(int).astype(str)
        return patients.assign(**{VALUE: value, "label": stratum})

    def check_patients(
        self, patients: pd.DataFrame, at_least: int = 1, where: str = "the task"
    ) -> None:
        """See `Labels.check_patients`: numbers must differ."""
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
        """See `Labels.ranking_problem`: some fold must test patients of two values."""
        if (tested(patients, folds, VALUE)[VALUE].nunique() > 1).any():
            return None
        return (
            "no fold tests patients of two values, so Pearson's and Spearman's correlations, which"
            " are computed over the test patients of one model, are undefined. Use 'kind: cv',"
            " another 'group', or 'metrics: [mae]'."
        )

    def fold_notes(self, patients: pd.DataFrame, folds: pd.DataFrame) -> list[str]:
        """See `Labels.fold_notes`: folds of fewer than four patients."""
        counts = tested(patients, folds, VALUE).size()
        few = int((counts < FEW_NUMBERS).sum())
        told = f"{few} of {len(counts)} folds test fewer than {FEW_NUMBERS} patients and add little"
        return [f"{told} to correlations. Use fewer folds, or more repeats."] if few else []

    def problems(self, rows: pd.DataFrame) -> list[str]:
        """What is wrong with the label's cells, a sentence each; text is named by its slide."""
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
        """How many the numbers are and where they lie, and what was read as unknown."""
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

    def strangers(self, own: pd.Series, words: pd.Series) -> pd.Series:
        """None: a number need not occur in the task's own cohorts."""
        del own
        return words.head(0)
