"""Several labels of classes that one model answers together, as hormone receptors and HER2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import pandas as pd

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import SplitSettings, each_fold, make_folds, patients_of
from stainssl.evaluation.labels import Labels, SeveralKeys

BETWEEN = "\x1f"  # the classes of a word: a character that no cell has
OF = "_of_"  # before a label: the column of its classes among a task's patients
LEAST = 5  # patients of a stratum: a fifth of them validates


@dataclass(frozen=True)
class SeveralLabels(Labels):
    """How several labels are read together; a word is the class of each, with `BETWEEN` between.

    A label that is not known has no class in the word; a word is unknown where all are.

    Attributes:
        each: how each label is read.
    """

    each: tuple[Labels, ...] = ()

    @classmethod
    def of(cls, task: SeveralKeys) -> Self:  # type: ignore[override]
        """See `Labels.of`; words, classes and the positive one are those of every label."""
        keys = tuple(task.na), dict(task.classes), task.positive
        return cls(", ".join(task.labels), *keys, tuple(Labels(one, *keys) for one in task.labels))

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Labels.columns`."""
        return tuple(one.label for one in self.each)

    def words_of(self, rows: pd.DataFrame) -> pd.Series:
        """See `Labels.words_of`."""
        return joined([one.words_of(rows) for one in self.each])

    def words(self, values: pd.Series) -> pd.Series:
        """Words that were read already."""
        return values

    def of_patients(self, words: pd.Series, patients: pd.Series) -> pd.Series:
        """See `Labels.of_patients`: a label known of one slide is that of all of a patient's."""
        parts = [column.where(column != "") for column in apart(words, len(self.each))]
        filled = [part.groupby(patients).transform("first").fillna("") for part in parts]
        return joined(filled).where(words != "", "")

    def order(self, words: Iterable[str]) -> list[str]:
        """Several labels have no classes in common."""
        del words
        return []

    def folds(
        self, rows: pd.DataFrame, level: str, split: SplitSettings, seed: int
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """See `Labels.folds`: of the patients with a known label at least.

        Folds are balanced by the labels together as far as patients suffice, and else by the first
        of them, the one with the rarest class before the others.

        Raises:
            StainsslError: the sheets do not carry the split, or the training patients of a fold
                are of one class of a label.
        """
        patients = self._patients(rows, level, split)
        self._check(patients, 1, "the task")
        columns = sorted((OF + one for one in self.columns), key=lambda c: rarest(patients[c]))
        patients["label"] = strata(patients, columns, max(split.folds, LEAST))
        # Strata that share their first labels follow each other, so that these are balanced too.
        patients = patients.sort_values(["label", "patient_id"], ignore_index=True)
        folds = make_folds(
            patients, kind=split.kind, folds=split.folds, repeats=split.repeats,
            group=split.group, stratify=split.stratify, check=self._check, seed=seed,
        )  # fmt: skip
        self._check_training(patients, folds)
        return patients, folds

    def _patients(self, rows: pd.DataFrame, level: str, split: SplitSettings) -> pd.DataFrame:
        tables = []
        for one in self.each:
            read = one.read(rows)
            if one.label in read and not (read[one.label] != "").any():
                raise StainsslError(f"no slide has a known {one.label!r}: leave it out of 'labels'")
            found = patients_of(
                read, level, one.label, kind=split.kind, group=split.group,
                stratify=split.stratify, order=one.order(read[one.label]),
            )  # fmt: skip
            tables.append(found.rename(columns={"label": OF + one.label}).set_index("patient_id"))
        merged = tables[0]
        for table in tables[1:]:
            merged = merged.combine_first(table)
        own = [OF + one for one in self.columns]
        return merged.fillna(dict.fromkeys(own, "")).reset_index()

    def _check(self, patients: pd.DataFrame, at_least: int, where: str) -> None:
        """As `check_classes`, of every label among its known patients."""
        for one in self.each:
            known = patients[patients[OF + one.label] != ""]
            one.check_patients(
                known.assign(label=known[OF + one.label]), at_least, f"{where}, {one.label!r},"
            )

    def _check_training(self, patients: pd.DataFrame, folds: pd.DataFrame) -> None:
        """Every model must see two classes of every label."""
        by_patient = patients.set_index("patient_id")
        for repeat, fold, roles in each_fold(folds):
            trained = by_patient.loc[sorted(roles["train"])]
            for one in self.columns:
                if len(set(trained[OF + one]) - {""}) < 2:
                    raise StainsslError(
                        f"repeat {repeat} fold {fold} has training patients of only one class of"
                        f" {one!r}. Use fewer folds, or make it a separate task."
                    )

    def ranking_problem(self, patients: pd.DataFrame, folds: pd.DataFrame) -> str | None:
        """See `Labels.ranking_problem`: of the first label with one."""
        found = (one.ranking_problem(mine, folds) for one, mine in self._of_each(patients))
        return next((problem for problem in found if problem), None)

    def fold_notes(self, patients: pd.DataFrame, folds: pd.DataFrame) -> list[str]:
        """See `Labels.fold_notes`."""
        return [
            f"{one.label}: {note}"
            for one, mine in self._of_each(patients)
            for note in one.fold_notes(mine, folds)
        ]

    def _of_each(self, patients: pd.DataFrame) -> list[tuple[Labels, pd.DataFrame]]:
        """Each label with its known patients."""
        columns = [(one, patients[OF + one.label]) for one in self.each]
        return [(one, patients.assign(label=known)[known != ""]) for one, known in columns]

    def problems(self, rows: pd.DataFrame) -> list[str]:
        """See `Labels.problems`: of every label."""
        return [problem for one in self.each for problem in one.problems(rows)]

    def summary(self, rows: pd.DataFrame) -> list[str]:
        """See `Labels.summary`: of every label, after its name."""
        return [f"{one.label}: {line}" for one in self.each for line in one.summary(rows)]


def joined(parts: Sequence[pd.Series]) -> pd.Series:
    """The words of several labels' classes; `""` where none is known."""
    words = pd.concat(parts, axis=1).agg(BETWEEN.join, axis=1)
    known = pd.concat([part != "" for part in parts], axis=1).any(axis=1)
    return words.where(known, "").astype(object)


def apart(words: pd.Series, count: int) -> list[pd.Series]:
    """The classes of each of several labels, of words that `joined` made."""
    rows = [word.split(BETWEEN) if word else [""] * count for word in words]
    return [pd.Series([row[i] for row in rows], words.index, dtype=object) for i in range(count)]


def rarest(classes: pd.Series) -> int:
    """Patients of the rarest known class of a label."""
    return int(classes[classes != ""].value_counts().min())


def strata(patients: pd.DataFrame, columns: Sequence[str], least: int) -> pd.Series:
    """What folds of several labels are balanced by: a word a patient.

    Args:
        patients: the classes of each label, "" where not known.
        columns: of the labels, the most important first.
        least: patients of a stratum; a smaller one is put together with those that agree in one
            label less.

    Returns:
        The classes of the first labels as far as so many patients agree in them.
    """
    words = patients[columns[0]].astype(str)
    for column in columns[1:]:
        longer = words + BETWEEN + patients[column]
        words = longer.where(longer.map(longer.value_counts()) >= least, words)
    return words
