"""Robustness metrics of encoders of tissue, encoders of stain, and collapsed ones."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from stainssl.evaluation.folds import make_folds
from stainssl.evaluation.geometry import effective_rank
from stainssl.evaluation.robustness import (
    confounded_test,
    confounded_vectors,
    measure,
    most_different,
    site_metrics,
)
from stainssl.evaluation.site_effects import robustness_indices, site_probe
from stainssl.evaluation.stainings import Stainings, jackknife_metric, mean_metric, median_metric

N, D = 216, 12


def _table(rng: np.random.Generator) -> pd.DataFrame:
    patient = np.arange(N) % 18
    return pd.DataFrame(
        {
            "patient_id": [f"p{i:02d}" for i in patient],
            "slide_id": [f"s{i:02d}" for i in patient],
            "tile": np.arange(N),
            "site": np.array(["a", "b", "c"])[patient % 3],
            "label": rng.integers(0, 2, N).astype(str),
        }
    )


def _stainings(rng: np.random.Generator, *, stain: float, tissue: float) -> Stainings:
    """Embeddings with a stain part (equal for all tiles of one staining) and a tissue part."""
    table = _table(rng)
    code = rng.normal(size=(3, D))
    own = tissue * rng.normal(size=(N, D))
    own[:, 0] += 3 * tissue * (table["label"] == "1")
    site = table["site"].map({"a": 0, "b": 1, "c": 2}).to_numpy()

    def stained(which: np.ndarray) -> np.ndarray:
        noise = 0.05 * rng.normal(size=(N, D))
        return (own + stain * code[which] + noise + 1e-3).astype(np.float32)

    everywhere = (np.full(N, s) for s in (0, 1))
    return Stainings(stained(site), *(stained(w) for w in everywhere), table)


def _folds(table: pd.DataFrame) -> pd.DataFrame:
    patients = table.groupby("patient_id")["site"].first().reset_index().assign(label="")
    split = np.where(patients["site"] == "c", "test", "train")
    return make_folds(patients.assign(split=split), kind="sheet")


@pytest.fixture(scope="module")
def measured():
    """Metrics and confounded predictions of an encoder of tissue and of one of stain."""

    def of(**options: float) -> tuple[pd.DataFrame, pd.DataFrame]:
        stainings = _stainings(np.random.default_rng(0), **options)
        metrics, predictions = measure(stainings, _folds(stainings.table))
        return pd.DataFrame(metrics), predictions

    return {"tissue": of(stain=0.0, tissue=1.0), "stain": of(stain=3.0, tissue=0.01)}


def _whole(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["group"] == "all"].set_index("metric")


def test_an_encoder_of_tissue_is_robust(measured):
    rows, predictions = measured["tissue"]
    found = _whole(rows)
    value = found["value"]
    assert value["stain_cosine"] > 0.95
    assert value["stain_margin"] > 0.5
    assert value["stain_retrieval_top1"] > 0.95
    assert value["confounded_auroc"] > 0.9
    assert found.loc["site_predictability", "low"] < value["site_chance"] == pytest.approx(1 / 3)
    assert value["croma"] > 0
    assert set(predictions["site"]) == {"c"}
    assert found.loc["confounded_auroc", "patients"] == 6


def test_an_encoder_of_stain_fails_the_confounded_test_but_not_the_mixed_one(measured):
    value = _whole(measured["stain"][0])["value"]
    assert value["site_predictability"] > 0.95
    assert value["stain_margin"] < 0.1
    assert value["croma"] < 0
    assert value["confounded_auroc"] < 0.3
    assert 0.35 < value["mixed_auroc"] < 0.65


def test_a_collapsed_encoder_does_not_appear_robust(rng):
    table = _table(rng)
    flat = np.ones((N, D), np.float32)
    metrics, _ = measure(Stainings(flat, flat, flat, table), _folds(table))
    value = pd.DataFrame(metrics).drop_duplicates("metric").set_index("metric")["value"]
    assert value["stain_cosine"] == pytest.approx(1)
    assert value["stain_margin"] == pytest.approx(0, abs=1e-5)
    assert value["stain_retrieval_top1"] == 0
    assert value["effective_rank"] == pytest.approx(1)
    assert value["uniformity"] == pytest.approx(0, abs=1e-5)
    assert value["confounded_auroc"] == pytest.approx(0.5)


def test_every_metric_lies_in_its_interval_over_patients(measured):
    rows = measured["tissue"][0]
    assert {"effective_rank", "alignment", "uniformity", "robustness_index", "seen_site_auroc",
            "site_drop", "clean_auroc"} <= set(rows["metric"])  # fmt: skip
    assert np.isfinite(rows[["low", "high"]]).all(axis=None)
    assert (rows["low"] <= rows["value"] + 1e-9).all()
    assert (rows["value"] <= rows["high"] + 1e-9).all()
    assert (rows["patients"] > 1).all()


def test_stain_agrees_with_the_label_in_training_and_is_reversed_in_the_test(rng):
    table = _table(rng)
    first, second = np.zeros((N, 1), np.float32), np.ones((N, 1), np.float32)
    train, test = confounded_vectors(Stainings(first, first, second, table), 0.9, 0, "1")
    positive = (table["label"] == "1").to_numpy()
    agrees = (train[:, 0] == 0) == positive
    assert 0.85 < agrees.mean() < 0.95
    assert np.array_equal(train[:, 0], 1 - test[:, 0])


def _without_sites(table: pd.DataFrame) -> pd.DataFrame:
    patients = table[["patient_id"]].drop_duplicates().assign(label="")
    return make_folds(patients, kind="cv", folds=3)


def test_a_site_with_one_patient_skips_croma_but_not_the_robustness_index(rng, caplog):
    stainings = _stainings(rng, stain=1.0, tissue=1.0)
    table = stainings.table
    first = table["patient_id"] == table["patient_id"].iloc[0]
    alone = table.assign(site=np.where(first, "d", table["site"]))
    with caplog.at_level("INFO"):
        metrics = [*robustness_indices(replace(stainings, table=alone), 0)]
    assert {f.metric for f in metrics} == {"robustness_index", "robustness_index_support"}
    assert "CRoMa skipped" in caplog.text
    assert "robustness index skipped" not in caplog.text


def test_one_site_skips_the_metrics_that_need_two(rng, caplog):
    stainings = _stainings(rng, stain=1.0, tissue=1.0)
    one = Stainings(
        stainings.original, stainings.first, stainings.second, stainings.table.assign(site="a")
    )
    with caplog.at_level("INFO"):
        metrics = [*site_probe(one, 0), *robustness_indices(one, 0)]
        metrics += site_metrics(one, _without_sites(one.table), 0)
    assert {f.metric for f in metrics} == {"clean_auroc"}
    assert caplog.text.count("skipped") == 3


def test_worst_site_auroc_is_the_lowest_of_all_sites(rng):
    stainings = _stainings(rng, stain=0.0, tissue=0.3)
    metrics = site_metrics(stainings, _without_sites(stainings.table), 0)
    by_site = [f.value for f in metrics if f.metric == "clean_auroc" and f.group != "all"]
    worst = next(f for f in metrics if f.metric == "worst_site_auroc")
    assert len(by_site) == 3
    assert worst.value == min(by_site)


def test_a_site_with_one_patient_is_not_the_worst_site(rng):
    stainings = _stainings(rng, stain=0.0, tissue=0.3)
    table = stainings.table
    first = table["patient_id"] == table["patient_id"].iloc[0]
    alone = replace(stainings, table=table.assign(site=np.where(first, "d", table["site"])))
    flipped = alone.original.copy()
    flipped[first] *= -1  # predicts the opposite of the label
    metrics = site_metrics(replace(alone, original=flipped), _without_sites(alone.table), 0)
    by_site = {f.group: f.value for f in metrics if f.metric == "clean_auroc" and f.group != "all"}
    worst = next(f for f in metrics if f.metric == "worst_site_auroc")
    assert min(by_site, key=by_site.get) == "site=d"
    assert worst.group != "site=d"


def test_three_classes_skip_the_confounded_test(rng):
    stainings = _stainings(rng, stain=1.0, tissue=1.0)
    label = np.array(["0", "1", "2"])[np.arange(N) // 18 % 3]
    three = Stainings(*[getattr(stainings, v) for v in ("original", "first", "second")],
                      stainings.table.assign(label=label))  # fmt: skip
    metrics, predictions = confounded_test(three, _folds(three.table), 0)
    assert metrics == []
    assert not len(predictions)


def test_effective_rank_of_known_spectra(rng):
    basis = np.linalg.qr(rng.normal(size=(64, 8)))[0].T
    flat = np.r_[basis, -basis] @ np.diag(np.ones(64))
    assert effective_rank(flat.astype(np.float32)) == pytest.approx(8, rel=1e-3)
    line = rng.normal(size=(50, 1)) * np.ones((1, 5))
    assert effective_rank(line.astype(np.float32)) == pytest.approx(1, abs=0.05)
    assert effective_rank(np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 4))) == (
        pytest.approx(1)
    )
    assert effective_rank(np.full((8, 4), 0.1, np.float32)) == 1


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(0, 99))
def test_effective_rank_is_at_most_the_rank(rank, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(40, rank)) @ rng.normal(size=(rank, 12))
    assert 1 <= effective_rank(vectors.astype(np.float32)) <= rank + 1e-4


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 300), st.integers(2, 300), st.integers(1, 6), st.integers(0, 99))
def test_effective_rank_is_that_of_the_singular_values(count, dim, rank, seed):
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(count, rank)) @ rng.normal(size=(rank, dim))).astype(np.float32)
    values = np.linalg.svd(vectors - vectors.mean(0, dtype=float), compute_uv=False)
    expected = np.exp(entropy(values / values.sum()))  # far fewer than the dimensions
    assert effective_rank(vectors) == pytest.approx(expected, rel=1e-3)


def test_intervals_depend_on_the_spread_between_patients_not_on_the_number_of_tiles(rng):
    patient = np.repeat(np.arange(10), 100)
    shared = np.repeat(rng.normal(size=10), 100)
    found = mean_metric("m", shared, patient, 0)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * shared.std() / np.sqrt(10), rel=0.2)
    middle = median_metric("m", shared + 5, patient, 0)
    assert middle.low <= middle.value <= middle.high
    jackknife = jackknife_metric("m", lambda kept: float(shared[kept].mean()), patient)
    assert (jackknife.high - jackknife.low) == pytest.approx(found.high - found.low, rel=0.25)


def test_most_different_finds_the_farthest_pair():
    points = np.array([[0.0, 0], [5, 5], [1, 0], [0, -1]])
    assert most_different(points, ["w", "x", "y", "z"]) == ("x", "z")
