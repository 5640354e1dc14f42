"""Linear and nearest-neighbor probes in folds, and samples of tiles."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.color import color_features
from stainssl.errors import StainsslError
from stainssl.evaluation import probe as module
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.folds import make_folds
from stainssl.evaluation.probe import (
    DEFAULT_PENALTY,
    Tiles,
    balanced_sample,
    choose_penalty,
    few_shot,
    fit_linear,
    nearest_neighbours,
    probe,
)


def _tiles(rng: np.random.Generator, signal: float, classes: int = 2, patients: int = 16) -> Tiles:
    n = 40 * patients
    patient = np.arange(n) % patients
    y = rng.integers(0, classes, n)
    features = rng.normal(size=(n, 12)) + rng.normal(size=(patients, 12))[patient]
    features[:, :classes] += signal * np.eye(classes)[y]
    table = pd.DataFrame(
        {
            "patient_id": [f"p{i}" for i in patient],
            "slide_id": [f"s{i}" for i in patient],
            "tile": np.arange(n),
            "site": np.where(patient % 2 == 0, "a", "b"),
        }
    )
    return Tiles(features.astype(np.float32), y, tuple("012"[:classes]), table)


def _folds(patients: int = 16, **options: object) -> pd.DataFrame:
    frame = pd.DataFrame({"patient_id": [f"p{i}" for i in range(patients)], "label": ""})
    return make_folds(frame, kind="cv", folds=4, **options)


def _auroc(predictions: pd.DataFrame) -> pd.Series:
    rows = evaluate(predictions, "tile", 0, resamples=300)
    return rows[(rows["metric"] == "auroc") & (rows["group"] == "all")].iloc[0]


@pytest.mark.parametrize("classes", [2, 3])
def test_both_probes_learn_a_label(rng, classes):
    linear, neighbours = probe(_tiles(rng, 3.0, classes), _folds())
    assert _auroc(linear)["low"] > 0.85
    assert _auroc(neighbours)["low"] > 0.6
    assert len(linear) == 640
    assert np.allclose(linear.filter(regex="^p_").sum(axis=1), 1)


def test_interval_without_signal_contains_one_half(rng):
    for predictions in probe(_tiles(rng, 0.0), _folds()):
        row = _auroc(predictions)
        assert row["low"] < 0.5 < row["high"]


def test_the_test_patients_of_every_repeat_are_predicted_and_no_others(rng):
    tiles, folds = _tiles(rng, 1.0), _folds(repeats=2)
    linear, _ = probe(tiles, folds)
    tested = folds[folds["role"] == "test"][["repeat", "fold", "patient_id"]]
    found = linear[["repeat", "fold", "patient_id"]].drop_duplicates()
    assert len(found.merge(tested)) == len(found) == len(tested)


def test_the_same_seed_gives_the_same_predictions(rng):
    tiles = _tiles(rng, 1.0)
    one, two = (probe(tiles, _folds(), seed=4)[0] for _ in range(2))
    pd.testing.assert_frame_equal(one, two)


def test_predictions_do_not_depend_on_test_labels(rng):
    tiles, folds = _tiles(rng, 1.0), _folds()
    tested = tiles.rows(set(folds[(folds["fold"] == 0) & (folds["role"] == "test")]["patient_id"]))
    changed = tiles.y.copy()
    changed[tested] = 1 - changed[tested]
    other = Tiles(tiles.features, changed, tiles.classes, tiles.table)
    one, two = (probe(t, folds[folds["fold"] == 0])[0] for t in (tiles, other))
    assert np.array_equal(one["p_1"], two["p_1"])


def test_noise_gets_a_stronger_penalty_than_signal(rng):
    def penalty(signal: float) -> float:
        x = rng.normal(size=(200, 60)).astype(np.float32)
        y = np.arange(200) % 2
        x[:, 0] += signal * y
        return choose_penalty((x[:100], y[:100]), (x[100:], y[100:]), 2)[0]

    assert penalty(0.0) > penalty(6.0)
    empty = np.zeros((0, 60), np.float32), np.zeros(0, int)
    assert (
        choose_penalty((rng.normal(size=(9, 60)), np.arange(9) % 2), empty, 2)[0] == DEFAULT_PENALTY
    )


def test_one_class_in_training_is_refused(rng):
    with pytest.raises(StainsslError, match="one class only"):
        fit_linear(rng.normal(size=(9, 3)).astype(np.float32), np.zeros(9, int), 2, 0.1)


def test_a_class_unseen_in_training_gets_probability_zero(rng):
    x = rng.normal(size=(40, 3)).astype(np.float32)
    p = fit_linear(x, np.arange(40) % 2 * 2, 3, 0.1)(x)
    assert p.shape == (40, 3)
    assert (p[:, 1] == 0).all()


@pytest.mark.filterwarnings("error")
def test_folds_that_lack_a_class_cause_no_warnings(rng):
    """Only one patient has the third class, so that one of the four folds tests it."""
    tiles = _tiles(rng, 3.0)
    y = np.where((tiles.table["patient_id"] == "p0") & (tiles.y == 1), 2, tiles.y)
    tiles = Tiles(tiles.features, y, ("0", "1", "2"), tiles.table)
    for predictions in probe(tiles, _folds()):
        assert np.isfinite(evaluate(predictions, "tile", 0, resamples=50)["value"]).any()
    assert len(few_shot(tiles, _folds()))
    alone = Tiles(tiles.features, np.where(y == 2, 1, 0), ("0", "1"), tiles.table)
    assert few_shot(alone, _folds()).empty  # no fold tests and trains two classes


def test_nearest_neighbours_equal_scikit_learn(rng, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 7)
    x, y = rng.normal(size=(80, 5)).astype(np.float32), rng.integers(0, 3, 80)
    test = rng.normal(size=(30, 5)).astype(np.float32)
    known = KNeighborsClassifier(20, metric="cosine").fit(x - x.mean(0), y)
    expected = known.predict_proba(test - x.mean(0))
    assert np.allclose(nearest_neighbours(x, y, test, 3), expected)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12), count=st.integers(1, 200))
def test_balanced_sample_is_bounded_and_even_over_patients(sizes, count):
    patient = np.repeat(np.arange(len(sizes)), sizes)
    rows = balanced_sample(patient, count, np.random.default_rng(0))
    assert len(rows) == min(count, len(patient))
    assert len(set(rows)) == len(rows)
    taken = np.bincount(patient[rows], minlength=len(sizes))
    short = taken < np.array(sizes)
    # Patients with tiles left have as many as any other, or one fewer.
    if short.any():
        assert taken[short].min() >= taken.max() - 1


def test_color_features_do_not_depend_on_the_positions_of_pixels(rng):
    images = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    shuffled = images.reshape(3, 64, 3)[:, rng.permutation(64)].reshape(3, 8, 8, 3)
    found = color_features(images)
    assert found.shape == (3, 9)
    assert np.allclose(found, color_features(shuffled), atol=1e-6)
    assert np.allclose(found[:, :3], images.mean((1, 2)) / 255, atol=1e-6)


def test_few_shot_auroc_increases_with_the_number_of_tiles(rng):
    curve = few_shot(_tiles(rng, 2.0), _folds())
    assert curve.groupby("shots").size().tolist() == [module.DRAWS] * len(module.SHOTS)
    mean = curve.groupby("shots")["auroc"].mean()
    assert 0.5 < mean[1] < mean[8] < mean[128] < 1
    spread = curve.groupby("shots")["auroc"].std()
    assert spread[128] < spread[1]


def test_shots_are_limited_by_the_rarest_class(rng):
    tiles = _tiles(rng, 2.0, classes=3, patients=4)
    folds = _folds(4)
    shots = few_shot(tiles, folds)["shots"].unique()
    training = [tiles.rows(set(rows["patient_id"][rows["role"] != "test"]))
                for _, rows in folds.groupby("fold")]  # fmt: skip
    least = min(np.bincount(tiles.y[rows]).min() for rows in training)
    assert shots.max() <= least


def test_few_shot_is_reproducible(rng):
    tiles = _tiles(rng, 1.0, patients=4)
    pd.testing.assert_frame_equal(few_shot(tiles, _folds(4)), few_shot(tiles, _folds(4)))
