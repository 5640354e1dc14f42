"""The tables beside exported features: of slides that were written, and of their patients."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from stainssl.evaluation.labels import Labels, is_unknown

log = logging.getLogger(__name__)


class Tables(NamedTuple):
    """What tools ask beside features.

    Attributes:
        slides: a row per slide that was written: `slide_id`, `patient_id`, the sheet's columns.
        patients: a row per patient of these: `patient_id`, the same columns.
    """

    slides: pd.DataFrame
    patients: pd.DataFrame


def tables_of(sheet: pd.DataFrame, written: Sequence[str], labels: Mapping[str, Labels]) -> Tables:
    """The tables of the slides that were written.

    A patient has of each label the highest class that any of her slides in the sheet has, as tasks
    read it, and of any other column her first known value; where she has several, a warning says
    so.

    Args:
        sheet: `slide_id`, `patient_id` and labels, str.
        written: slides that have a file.
        labels: column → how a task reads it.
    """
    slides = sheet[sheet["slide_id"].isin(set(written))].reset_index(drop=True)
    columns = [c for c in sheet if c not in ("slide_id", "patient_id")]
    values = {column: _of_patients(sheet, column, labels.get(column)) for column in columns}
    people = pd.Series(slides["patient_id"].unique(), name="patient_id")
    patients = pd.DataFrame({"patient_id": people} | {c: people.map(values[c]) for c in columns})
    return Tables(slides, patients.fillna(""))


def _of_patients(sheet: pd.DataFrame, column: str, labels: Labels | None) -> dict[str, str]:
    """Patient → value; a patient without a known one is left out."""
    words = labels.words(sheet[column]) if labels else sheet[column]
    known = words[~words.map(is_unknown)]
    if labels:
        rank = {word: i for i, word in enumerate(labels.order(known))}
        known = known.loc[known.map(rank).sort_values(ascending=False, kind="stable").index]
    people = sheet["patient_id"].loc[known.index]
    several = known.groupby(people).nunique()
    if labels is None and (torn := int((several > 1).sum())):
        log.warning("%r: %d patients have several values: using the first", column, torn)
    return dict(known.groupby(people).first().items())
