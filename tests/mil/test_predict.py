"""Predictions of bags, and saved fold models."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stainssl.errors import StainsslError
from stainssl.mil.heads import HEADS
from stainssl.mil.predict import load_model, predict_bag, prediction_table, save_model
from stainssl.mil.targets import Classes
from stainssl.mil.train import HeadSettings, fit


@pytest.fixture(params=sorted(HEADS))
def model(request, make_cohort):
    settings = HeadSettings(kind=request.param, epochs=3, hidden=8, max_tiles=8)
    return fit(make_cohort(8, shift=1.0), [], Classes(("neg", "pos")), settings, seed=0)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_do_not_change_the_prediction(model, make_bag, chunk):
    bag = make_bag(99, 1, n=25, slides=2)
    probability, attention = predict_bag(model, bag, chunk)
    whole, whole_attention = predict_bag(model, bag)
    assert probability.sum() == pytest.approx(1)
    assert attention.sum() == pytest.approx(1)
    assert attention.shape == (50,)
    np.testing.assert_allclose(probability, whole, rtol=1e-4)
    np.testing.assert_allclose(attention, whole_attention, rtol=1e-4)


def test_a_loaded_model_predicts_the_same(model, make_bag, tmp_path):
    bag = make_bag(99, 1)
    save_model(model, tmp_path / "models" / "repeat0-fold1")
    loaded = load_model(tmp_path / "models" / "repeat0-fold1")
    for ours, theirs in zip(predict_bag(model, bag), predict_bag(loaded, bag), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.settings == model.settings
    assert loaded.target.names == model.target.names


def test_a_model_of_another_schema_is_refused(model, tmp_path):
    save_model(model, tmp_path / "m")
    card = json.loads((tmp_path / "m.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps(card | {"schema": 99}))
    with pytest.raises(StainsslError, match="schema 99"):
        load_model(tmp_path / "m")


def test_prediction_rows(make_bag):
    target = Classes(("neg", "pos"))
    table = prediction_table([make_bag(4, 1)], np.array([[0.25, 0.75]]), target, 2, 1)
    assert table.to_dict("records") == [
        {
            "patient_id": "p4", "slide_id": "", "site": "a", "repeat": 2, "fold": 1, "y": "pos",
            "p_neg": 0.25, "p_pos": 0.75,
        }
    ]  # fmt: skip
