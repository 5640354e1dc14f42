"""Several labels predicted by one model (key `labels`), such as hormone receptors and HER2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import pandas as pd

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import SplitSettings, each_fold, make_folds, patients_of
from stainssl.evaluation.labels import Labels, MultiLabelKeys

BETWEEN = "\x1f"  # separates the classes of several labels; does not occur in cells
OF = "_of_"  # prefix of a label's column among a task's patients
LEAST = 5  # patients per stratum, since a fifth of them validates


@dataclass(frozen=True)
class MultiLabels(Labels):
    """How several labels are read; a label value joins the class of each by `BETWEEN`.

    An unknown label contributes an empty class; the value is `""` if all labels are unknown.

    Attributes:
        each: how each label is read.
    """

    each: tuple[Labels, ...] = ()

    @classmethod
    def of(cls, task: MultiLabelKeys) -> Self:  # type: ignore[override]
        """See `Labels.of`; `na`, `classes` and `positive` apply to every label."""
        keys = tuple(task.na), dict(task.classes), task.positive
        return cls(", ".join(task.labels), *keys, tuple(Labels(one, *keys) for one in task.labels))

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Labels.columns`."""
        return tuple(one.label for one in self.each)

    def words_of(self, rows: pd.DataFrame) -> pd.Series:
        """See `Labels.words_of`."""
        return join_labels([one.words_of(rows) for one in self.each])

    def words(self, values: pd.Series) -> pd.Series:
        """Label values that have been read already."""
        return values

    def of_patients(self, words: pd.Series, patients: pd.Series) -> pd.Series:
        """See `Labels.of_patients`: a label of one slide holds for all slides of the patient."""
        parts = [column.where(column != "") for column in split_labels(words, len(self.each))]
        filled = [part.groupby(patients).transform("first").fillna("") for part in parts]
        return join_labels(filled).where(words != "", "")

    def order(self, words: Iterable[str]) -> list[str]:
        """Empty: several labels have no common classes."""
        del words
        return []

    def folds(
        self, rows: pd.DataFrame, level: str, split: SplitSettings, seed: int
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """See `Labels.folds`: for patients with at least one known label.

        Folds are balanced by all labels together where enough patients agree in them, otherwise by
        as many as possible, starting with the label that has the rarest class.

        Raises:
            StainsslError: the sheets do not allow the split, or the training patients of a fold
                have only one class of a label.
        """
        patients = self._patients(rows, level, split)
        self._check(patients, 1, "the task")
        columns = sorted((OF + one for one in self.columns), key=lambda c: rarest(patients[c]))
        patients["label"] = strata(patients, columns, max(split.folds, LEAST))
        # Strata that agree in the first labels are adjacent, so that these are balanced too.
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
        """As `check_classes`, for every label, among the patients for whom it is known."""
        for one in self.each:
            known = patients[patients[OF + one.label] != ""]
            one.check_patients(
                known.assign(label=known[OF + one.label]), at_least, f"{where}, {one.label!r},"
            )

    def _check_training(self, patients: pd.DataFrame, folds: pd.DataFrame) -> None:
        """Check that every fold has training patients of two classes of every label."""
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
        """See `Labels.ranking_problem`: the first problem of any label."""
        found = (one.ranking_problem(mine, folds) for one, mine in self._of_each(patients))
        return next((problem for problem in found if problem), None)

    def fold_notes(self, patients: pd.DataFrame, folds: pd.DataFrame) -> list[str]:
        """See `Labels.fold_notes`: for every label."""
        return [
            f"{one.label}: {note}"
            for one, mine in self._of_each(patients)
            for note in one.fold_notes(mine, folds)
        ]

    def _of_each(self, patients: pd.DataFrame) -> list[tuple[Labels, pd.DataFrame]]:
        """Each label with the patients for whom it is known."""
        columns = [(one, patients[OF + one.label]) for one in self.each]
        return [(one, patients.assign(label=known)[known != ""]) for one, known in columns]

    def problems(self, rows: pd.DataFrame) -> list[str]:
        """See `Labels.problems`: for every label."""
        return [problem for one in self.each for problem in one.problems(rows)]

    def summary(self, rows: pd.DataFrame) -> list[str]:
        """See `Labels.summary`: for every label, preceded by its name."""
        return [f"{one.label}: {line}" for one in self.each for line in one.summary(rows)]


def join_labels(parts: Sequence[pd.Series]) -> pd.Series:
    """Join the classes of several labels into one label value; `""` if none is known."""
    words = pd.concat(parts, axis=1).agg(BETWEEN.join, axis=1)
    known = pd.concat([part != "" for part in parts], axis=1).any(axis=1)
    return words.where(known, "").astype(object)


def split_labels(words: pd.Series, count: int) -> list[pd.Series]:
    """Split label values made by `join_labels` into the classes of `count` labels."""
    rows = [word.split(BETWEEN) if word else [""] * count for word in words]
    return [pd.Series([row[i] for row in rows], words.index, dtype=object) for i in range(count)]


def rarest(classes: pd.Series) -> int:
    """Number of patients of the rarest known class."""
    return int(classes[classes != ""].value_counts().min())


def strata(patients: pd.DataFrame, columns: Sequence[str], least: int) -> pd.Series:
    """Strata by which folds are balanced for several labels.

    Args:
        patients: one column per label with its classes, `""` if unknown.
        columns: columns of the labels, the most important first.
        least: minimum number of patients per stratum; smaller strata use fewer labels.

    Returns:
        The classes of the first labels, joined: as many as `least` patients agree in.
    """
    words = patients[columns[0]].astype(str)
    for column in columns[1:]:
        longer = words + BETWEEN + patients[column]
        words = longer.where(longer.map(longer.value_counts()) >= least, words)
    return words
