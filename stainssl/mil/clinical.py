"""Clinical columns of the sheet as features of bags."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stainssl.evaluation.columns import column_features
from stainssl.mil.bags import Bag


def clinical_columns(bags: Sequence[Bag], rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The clinical columns, one row per bag; for a patient, those of the first slide.

    Args:
        bags: bags of slides or patients.
        rows: rows of the sheets with `slide_id`, `patient_id` and the columns.
        columns: names of the clinical columns, at least one.
    """
    unit = "slide_id" if bags[0].slide_id else "patient_id"
    names = [getattr(bag, unit) for bag in bags]
    return rows.drop_duplicates(unit).set_index(unit).loc[names, columns].reset_index(drop=True)


def with_clinical(bags: Sequence[Bag], table: pd.DataFrame, train: set[str]) -> list[Bag]:
    """Add clinical features (see `column_features`) to bags.

    Features are standardized to mean 0 and standard deviation 1 over the training bags; one that is
    constant there is only centred.

    Args:
        bags: N bags.
        table: N rows of the clinical columns.
        train: ids of the training patients.
    """
    training = np.array([bag.patient_id in train for bag in bags])
    features = column_features(table, list(table), training)
    mean, std = features[training].mean(axis=0), features[training].std(axis=0)
    scaled = (features - mean) / np.where(std > 0, std, 1)
    return [
        dataclasses.replace(bag, columns=tuple(row))
        for bag, row in zip(bags, scaled.tolist(), strict=True)
    ]
