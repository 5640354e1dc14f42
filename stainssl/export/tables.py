"""Tables of slides and patients that are exported with the features."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from stainssl.evaluation.labels import Labels, unknown_cells

log = logging.getLogger(__name__)


class Tables(NamedTuple):
    """Labels of exported slides and their patients.

    Attributes:
        slides: one row per exported slide: `slide_id`, `patient_id`, other columns of the sheet.
            A label of a task is a class of the task; unknown values are empty.
        patients: one row per patient of these slides: `patient_id`, the same other columns.
    """

    slides: pd.DataFrame
    patients: pd.DataFrame


def tables_of(sheet: pd.DataFrame, written: Sequence[str], labels: Mapping[str, Labels]) -> Tables:
    """Make the tables of the exported slides and their patients.

    For each label, a patient has the highest class among all of her slides in the sheet, in the
    order that tasks use. For other columns she has the first known value, with a warning if there
    are several.

    Args:
        sheet: `slide_id`, `patient_id` and other columns, as str.
        written: slides that were exported.
        labels: column → how a task reads it.
    """
    columns = [c for c in sheet if c not in ("slide_id", "patient_id")]
    read = {c: _known(sheet[c], labels.get(c)) for c in columns}
    slides = sheet.assign(**read)[sheet["slide_id"].isin(set(written))].reset_index(drop=True)
    values = {column: _of_patients(sheet, column, labels.get(column)) for column in columns}
    people = pd.Series(slides["patient_id"].unique(), name="patient_id")
    patients = pd.DataFrame({"patient_id": people} | {c: people.map(values[c]) for c in columns})
    return Tables(slides, patients.fillna(""))


def _known(values: pd.Series, labels: Labels | None) -> pd.Series:
    if labels:
        return labels.words(values)
    return values.mask(unknown_cells(values), "")


def _of_patients(sheet: pd.DataFrame, column: str, labels: Labels | None) -> dict[str, str]:
    """Value of each patient who has a known one (patient → value)."""
    words = _known(sheet[column], labels)
    known = words[words != ""]
    if labels:
        rank = {word: i for i, word in enumerate(labels.order(known))}
        known = known.loc[known.map(rank).sort_values(ascending=False, kind="stable").index]
    people = sheet["patient_id"].loc[known.index]
    several = known.groupby(people).nunique()
    if labels is None and (torn := int((several > 1).sum())):
        log.warning("%r: %d patients have several values: using the first", column, torn)
    return dict(known.groupby(people).first().items())
