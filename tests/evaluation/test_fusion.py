"""Late fusion of predictions from slides and from clinical columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from stainssl.config import parse
from stainssl.evaluation.fusion import ADDED, added_notes, late
from stainssl.evaluation.predictions import THRESHOLD

PATIENTS = [f"p{i}" for i in range(40)]


def predictions(p: np.ndarray, y: np.ndarray, **more: object) -> pd.DataFrame:
    return pd.DataFrame({
        "patient_id": PATIENTS, "slide_id": "", "site": "a", "repeat": 0,
        "fold": np.arange(40) % 4, "y": y, "p_neg": 1 - p, "p_pos": p, **more,
    })  # fmt: skip


@given(st.integers(0, 50))
def test_log_odds_of_two_classes_are_averaged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = rng.uniform(0.01, 0.99, (2, 40))
    y = np.where(rng.random(40) < 0.5, "pos", "neg")
    both = late(predictions(one, y, **{THRESHOLD: 0.3}), predictions(two, y), "patient")
    np.testing.assert_allclose(both["p_pos"], expit((logit(one) + logit(two)) / 2))
    np.testing.assert_allclose(both["p_neg"] + both["p_pos"], 1)
    assert THRESHOLD not in both
    assert both["patient_id"].tolist() == PATIENTS


def test_pooling_two_noisy_models_raises_the_auroc() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    one, two = (expit(1.5 * (2 * y - 1) + 1.5 * rng.normal(size=40)) for _ in range(2))
    words = np.where(y == 1, "pos", "neg")
    both = late(predictions(one, words), predictions(two, words), "patient")
    alone = max(roc_auc_score(y, one), roc_auc_score(y, two))
    assert roc_auc_score(y, both["p_pos"]) > alone


def test_a_probability_of_zero_does_not_override_the_other_model() -> None:
    y = np.repeat("neg", 40)
    both = late(predictions(np.zeros(40), y), predictions(np.linspace(0.1, 0.9, 40), y), "patient")
    assert np.isfinite(both["p_pos"]).all()
    assert both["p_pos"].is_monotonic_increasing
    assert both["p_pos"].nunique() == 40


def test_rows_are_matched_by_patient_and_fold_in_any_order() -> None:
    y = np.repeat("neg", 40)
    one, two = predictions(np.linspace(0.1, 0.9, 40), y), predictions(np.linspace(0.1, 0.9, 40), y)
    both = late(one, two.iloc[::-1], "patient")
    np.testing.assert_allclose(both["p_pos"], one["p_pos"])
    assert len(late(one, two.head(30), "patient")) == 30


def test_numbers_are_averaged_and_grades_follow_the_pooled_probabilities() -> None:
    keys = predictions(np.full(40, 0.5), np.repeat("neg", 40))[
        ["patient_id", "slide_id", "repeat", "fold"]
    ]
    one, two = (keys.assign(y=1.0, value=value) for value in (10.0, 30.0))
    assert late(one, two, "patient")["value"].tolist() == [20.0] * 40
    first = keys.assign(y="1", p_0=0.2, p_1=0.3, p_2=0.5, grade=1.3)
    second = keys.assign(y="1", p_0=0.5, p_1=0.3, p_2=0.2, grade=0.7)
    assert late(first, second, "patient")["grade"].to_numpy() == pytest.approx(1.0)


def test_note_has_the_difference_to_clinical_columns_with_its_sign() -> None:
    row = {"task": "her2", "metric": "auroc", "low": -0.2, "high": 0.1, "p_holm": 0.4}
    compared = pd.DataFrame([
        row | {"first": "uni + abmil", "second": "clinical only + columns", "difference": 0.3},
        row | {"first": "clinical only + columns", "second": f"uni + abmil{ADDED}",
               "difference": -0.05},
    ])  # fmt: skip
    (note,) = added_notes(compared, "clinical only + columns")
    assert note.startswith(
        "her2, auroc: uni + abmil + clinical minus clinical only: +0.05 (-0.10 to +0.20)"
    )


@pytest.mark.parametrize("task", [{"level": "slide"}, {"level": "tile", "clinical": ["age"]}])
def test_fusion_needs_slides_and_clinical_columns(task: dict) -> None:
    given = {"label": "her2", "cohorts": ["c"], "fusion": "late", **task}
    with pytest.raises(Exception, match="fusion needs 'clinical' columns"):
        parse({"cohorts": {"c": {"sheet": "s.csv"}}, "tasks": {"her2": given}})
