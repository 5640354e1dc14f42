"""Distances of new slides from the slides of training."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stainssl.mil.reference import references

NONE = np.empty(0, np.float32)


def _table(patients: str, stain: list[np.ndarray]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    features = [rng.normal(size=4).astype(np.float32) for _ in patients]
    slides = [f"s{i}" for i in range(len(patients))]
    columns = {"slide_id": slides, "patient_id": list(patients)}
    return pd.DataFrame({**columns, "features": features, "stain": stain})


def test_a_slide_like_those_of_training_is_near_and_another_one_is_far() -> None:
    table = _table("abcdef", [NONE] * 6)
    features, _ = references(table)
    new = np.stack([table["features"].iloc[0], np.full(4, 100, np.float32)])
    near, far = features.distances(new)
    assert features.is_known
    assert near <= 1 < far


@pytest.mark.parametrize("patients", ["abcdef", "a", ""])
def test_unknown_stains_of_training_have_no_distance(patients: str) -> None:
    _, stain = references(_table(patients, [NONE] * len(patients)))
    assert not stain.is_known
    assert np.isnan(stain.distances(np.full((2, 1), np.nan, np.float32))).all()
    assert np.isnan(stain.distances(np.ones((2, 1), np.float32))).all()


def test_stains_of_one_patient_have_no_distance() -> None:
    _, stain = references(_table("aa", [np.ones(3, np.float32)] * 2))
    assert stain.is_known
    assert np.isnan(stain.distances(np.ones((2, 3), np.float32))).all()
