from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines.utils import concordance_index
from scipy.stats import spearmanr

from stainssl.cohort import check
from stainssl.config import METRICS_BY_KIND, load
from stainssl.demo import sheet
from stainssl.demo.plan import COLUMNS, TIL_GROUPS, hazards, plan

REPO = Path(__file__).resolve().parents[2]
LARGE = {"a": 40, "b": 40, "c": 40, "d": 40}


def test_size_of_the_default_cohort() -> None:
    slides = [slide for slide in plan(0) if not slide.fault]
    assert len(slides) >= 36
    assert len({slide.patient_id for slide in slides}) >= 28
    assert len(slides) > len({slide.patient_id for slide in slides})


def test_three_slides_are_faulty_two_have_pen_and_one_is_out_of_focus() -> None:
    assert sorted(s.fault for s in plan(0) if s.fault) == ["empty", "no-mpp", "truncated"]
    assert sorted(s.artefact for s in plan(0) if s.artefact) == ["out-of-focus", "pen", "pen"]
    good = {s.patient_id for s in plan(0) if not s.fault}
    assert {s.patient_id for s in plan(0) if s.fault} <= good


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    patients=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), min_size=1, max_size=6),
)
def test_the_sheet_is_stable_and_well_formed(seed: int, patients: dict[str, int]) -> None:
    frame = sheet(seed, patients)
    pd.testing.assert_frame_equal(frame, sheet(seed, dict(reversed(patients.items()))))
    assert list(frame) == COLUMNS
    assert frame.slide_id.is_unique
    assert frame.slide_id.str.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*").all()
    assert frame.groupby("site").patient_id.nunique().to_dict() == patients
    assert (frame.split == np.where(frame.site.isin(["a", "b"]), "train", "test")).all()
    assert frame[["her2", "response"]].isin([0, 1]).all(axis=None)
    assert (frame.groupby("patient_id")[["her2", "response"]].nunique() == 1).all(axis=None)
    order = frame.sort_values(["site", "patient_id", "slide_id"], kind="stable").index
    assert (order == frame.index).all()


def test_tils_and_relapse_of_the_sheet_follow_the_truth() -> None:
    frame = sheet(3, LARGE)
    own = frame.groupby("patient_id")[["months", "relapse"]].nunique()
    assert (own == 1).all(axis=None)
    tils = {one.slide_id: one.tils for one in plan(3, LARGE)}
    np.testing.assert_allclose(frame["tils"], frame["slide_id"].map(tils), atol=0.01)
    assert frame["tils"].between(0.3, 30).all()
    assert spearmanr(frame["tils"], frame["response"]).statistic > 0.6
    patients = frame.drop_duplicates("patient_id")
    assert 0.3 < patients["relapse"].mean() < 0.8
    assert patients["months"].between(0.1, 72).all()


def test_the_true_hazard_has_the_highest_concordance() -> None:
    """No column of the sheet, nor noise, ranks relapse better than the hazard it was drawn from."""
    slides, frame = plan(5, LARGE), sheet(5, LARGE).drop_duplicates("patient_id")
    truth = hazards(slides)
    scores = {
        "oracle": -frame["patient_id"].map(truth),
        "response": frame["response"],
        "her2": frame["her2"],
        "noise": np.random.default_rng(0).normal(size=len(frame)),
    }
    concordances = {
        name: concordance_index(frame["months"], score, frame["relapse"])
        for name, score in scores.items()
    }
    assert concordances["oracle"] == max(concordances.values())
    assert 0.65 < concordances["oracle"] < 0.9
    assert 0.6 < concordances["response"] < concordances["oracle"]


def test_til_groups_follow_the_tils_and_all_have_patients() -> None:
    frame = sheet(1)
    lowest = frame.groupby("til_group")["tils"].min()
    highest = frame.groupby("til_group")["tils"].max()
    assert highest["low"] < TIL_GROUPS["middle"] <= lowest["middle"]
    assert highest["middle"] < TIL_GROUPS["high"] <= lowest["high"]
    assert frame.groupby("til_group")["patient_id"].nunique().min() >= 8


def test_the_demo_has_tasks_of_every_kind_that_pass_the_checks() -> None:
    config = load(REPO / "config.yaml")
    benchmarked = [config.tasks[name] for one in config.benchmarks.values() for name in one.tasks]
    assert {task.kind for task in benchmarked} == set(METRICS_BY_KIND)
    assert any(task.labels for task in benchmarked)
    assert not [one for one in check(config) if "tasks" in one]


def test_another_seed_gives_other_labels() -> None:
    assert not sheet(0, LARGE).equals(sheet(1, LARGE))


@pytest.mark.parametrize("label", ["her2", "response"])
def test_labels_depend_on_the_site_in_training_and_not_in_test(label: str) -> None:
    share = sheet(3, LARGE).drop_duplicates("patient_id").groupby("site")[label].mean()
    assert share["a"] == pytest.approx(0.7)
    assert share["b"] == pytest.approx(0.3)
    assert share["c"] == share["d"] == pytest.approx(0.5)


@pytest.mark.parametrize(("name", "sign"), [("a", 1), ("b", 1), ("c", -1), ("d", -1)])
def test_stain_correlates_with_tumour_in_training_and_inversely_in_test(
    name: str, sign: int
) -> None:
    slides = [slide for slide in plan(3, LARGE) if slide.site == name]
    strength = [np.log(slide.site_parameters.strength[0]) for slide in slides]
    assert sign * np.corrcoef(strength, [slide.tumour_share for slide in slides])[0, 1] > 0.7


def test_training_sites_differ_in_tumour_and_a_test_site_is_between_them() -> None:
    share = pd.DataFrame([(s.site, s.tumour_share) for s in plan(3, LARGE)]).groupby(0)[1].mean()
    assert share["a"] > share["c"] + 0.1 > share["b"] + 0.2


@pytest.mark.parametrize("patients", [{"A": 3}, {"../x": 3}, {"a": 0}, {"": 2}, {"a": 1000}])
def test_invalid_sites_are_refused_with_an_example(patients: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"for example \{a: 10"):
        sheet(0, patients)
