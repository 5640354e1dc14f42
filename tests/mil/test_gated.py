"""Gated fusion of slide vectors and clinical columns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from stainssl.config import parse
from stainssl.errors import StainsslError
from stainssl.mil.clinical import clinical_columns, with_clinical
from stainssl.mil.heads import FUSED, create
from stainssl.mil.predict import load_model, predict_bag, save_model
from stainssl.mil.targets import Classes
from stainssl.mil.train import HeadSettings, fit, with_columns

DIM, COLUMNS = 12, 3


@pytest.mark.parametrize("kind", FUSED)
def test_the_head_follows_the_equations_of_the_gated_multimodal_unit(kind):
    head = create(kind, DIM, 2, 8, 0.5, columns=COLUMNS).eval()
    tiles, columns = torch.randn(1, 7, DIM), torch.randn(1, COLUMNS)
    mask = torch.ones(1, 7, dtype=torch.bool)
    embedded = head.slides.embed(tiles)
    weights = torch.softmax(head.slides.score(embedded), dim=1)
    z = (weights[..., None] * embedded).sum(1)
    gate = torch.sigmoid(head.gate(torch.cat([z, columns], 1)))
    unit = gate * torch.tanh(head.of_slide(z)) + (1 - gate) * torch.tanh(head.of_columns(columns))
    both = with_columns(tiles, columns[:, None])
    torch.testing.assert_close(head(both, mask), head.classifier(unit))
    torch.testing.assert_close(head.attention(both, mask), weights)


@pytest.mark.parametrize("kind", FUSED)
def test_padding_and_blocks_do_not_change_the_logits(kind):
    head = create(kind, DIM, 2, 8, 0.5, columns=COLUMNS).eval()
    bag = with_columns(torch.randn(1, 9, DIM), torch.randn(1, 1, COLUMNS))
    padded = torch.cat([bag, torch.randn(1, 4, DIM + COLUMNS)], dim=1)
    mask = torch.arange(13)[None] < 9
    whole = head(bag, mask[:, :9])
    torch.testing.assert_close(head(padded, mask), whole)
    logits, attention = head.stream([bag[0, :4], bag[0, 4:]])
    torch.testing.assert_close(logits, whole[0])
    assert attention.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["clam", "dsmil", "transmil"])
def test_heads_without_a_slide_vector_are_refused(kind):
    with pytest.raises(StainsslError, match=f"mean or abmil, not {kind}"):
        create(kind, DIM, 2, 8, 0.0, columns=1)
    data = {
        "cohorts": {"c": {"sheet": "s.csv"}}, "encoders": {"e": {"weights": "w"}},
        "tasks": {"t": {"level": "slide", "label": "x", "cohorts": ["c"], "clinical": ["age"],
                        "fusion": "gated"}},
        "heads": {"h": {"kind": kind}},
        "benchmarks": {"b": {"tasks": ["t"], "encoders": ["e"], "heads": ["h"]}},
    }  # fmt: skip
    with pytest.raises(StainsslError, match=f"h is of kind {kind}, and fusion: gated needs heads"):
        parse(data)


def test_columns_are_standardized_on_training_patients_and_unknown_cells_are_indicated(make_bag):
    bags = [make_bag(i, 0) for i in range(5)]
    rows = pd.DataFrame({
        "slide_id": [f"p{i}-s0" for i in range(5)], "patient_id": [f"p{i}" for i in range(5)],
        "age": ["10", "20", "30", "NA", "1000"],
    })  # fmt: skip
    table = clinical_columns(bags, rows.iloc[::-1], ["age"])
    assert table["age"].tolist() == ["10", "20", "30", "NA", "1000"]
    made = np.array([bag.columns for bag in with_clinical(bags, table, {"p0", "p1", "p2"})])
    np.testing.assert_allclose(made[:3, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(made[:3, 0].std(), 1, atol=1e-6)
    # The training patients' median, and the indicator of unknown cells.
    assert made[3].tolist() == [0, 1]
    other = table.assign(age=["10", "20", "30", "NA", "5"])
    again = np.array([bag.columns for bag in with_clinical(bags, other, {"p0", "p1", "p2"})])
    np.testing.assert_array_equal(made[:4], again[:4])  # test patients do not affect the scaling


def test_the_head_learns_from_both_inputs_and_can_be_saved_and_loaded(make_bag, tmp_path):
    rng, bags = np.random.default_rng(0), []
    for i in range(120):
        slide, column = rng.integers(2), 2 * rng.normal()
        bag = make_bag(i, int(2 * slide - 1 + column > 0))
        bag.tiles[0].features[:10, :4] += 1.5 * slide
        bags.append(dataclasses.replace(bag, columns=(float(column),)))
    truth = [bag.label for bag in bags[90:]]
    settings = HeadSettings("abmil", epochs=30, lr=5e-3, hidden=16)
    target = Classes(("n", "p"))
    both = fit(bags[:70], bags[70:90], target, dataclasses.replace(settings, columns=1), 0)
    alone = fit(bags[:70], bags[70:90], target, settings, 0)
    save_model(both, tmp_path / "m")
    read = load_model(tmp_path / "m")
    of_both, of_read, of_slides = (
        [predict_bag(model, bag)[0][1] for bag in bags[90:]] for model in (both, read, alone)
    )
    np.testing.assert_array_equal(of_both, of_read)
    columns = [bag.columns[0] for bag in bags[90:]]
    assert roc_auc_score(truth, of_both) > roc_auc_score(truth, of_slides) + 0.03
    assert roc_auc_score(truth, of_both) > roc_auc_score(truth, columns) + 0.03
