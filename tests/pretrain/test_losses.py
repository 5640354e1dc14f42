"""The contrastive loss against lightly, and metrics of embeddings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss

from stainssl.pretrain.losses import (
    alignment,
    nearest_neighbours,
    nt_xent,
    uniformity,
)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(2, 12),
    dim=st.integers(1, 16),
    temperature=st.floats(0.05, 2),
    seed=st.integers(0, 99),
)
def test_nt_xent_equals_lightly(count, dim, temperature, seed):
    first, second = torch.randn(2, count, dim, generator=torch.Generator().manual_seed(seed))
    expected = NTXentLoss(temperature)(first, second)
    torch.testing.assert_close(nt_xent(first, second, temperature), expected, rtol=1e-4, atol=1e-4)


def test_the_loss_of_equal_vectors_is_the_logarithm_of_the_number_of_candidates():
    same = torch.ones(5, 3)
    assert float(nt_xent(same, same, 0.2)) == pytest.approx(math.log(9), abs=1e-5)


def test_equal_views_have_a_lower_loss():
    first = torch.eye(6)
    assert nt_xent(first, first, 0.2) < nt_xent(first, first.roll(1, 0), 0.2)


def test_alignment_is_zero_for_equal_and_four_for_opposite_views():
    features = torch.randn(9, 4)
    assert alignment(features, 3 * features) == pytest.approx(0, abs=1e-6)
    assert alignment(features, -features) == pytest.approx(4, abs=1e-5)


def test_uniformity_is_zero_for_equal_and_lower_for_orthogonal_vectors():
    assert uniformity(torch.ones(5, 4)) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.eye(5)) == pytest.approx(-4, abs=1e-5)  # d² of orthogonal units is 2


def test_nearest_neighbours_find_classes_only_if_vectors_separate_them():
    rng = torch.Generator().manual_seed(0)
    classes = torch.arange(120) % 3
    groups = torch.arange(120) // 10
    separated = torch.nn.functional.one_hot(classes).float() + 0.1 * torch.randn(
        120, 3, generator=rng
    )
    assert nearest_neighbours(separated, classes, groups) > 0.95
    noise = torch.randn(120, 3, generator=rng)
    assert nearest_neighbours(noise, classes, groups) < 0.55


def test_tiles_of_the_same_patient_do_not_vote():
    groups = torch.arange(40) // 10
    classes = groups % 2  # vectors depend on the patient only
    vectors = torch.nn.functional.one_hot(groups).float() + 0.01 * torch.randn(40, 4)
    assert nearest_neighbours(vectors, classes, groups, neighbours=5) < 0.9


def test_unknown_classes_are_ignored_and_a_single_class_or_group_gives_nan():
    vectors, groups = torch.randn(20, 4), torch.arange(20)
    assert math.isnan(nearest_neighbours(vectors, torch.zeros(20).long(), groups))
    half = torch.where(torch.arange(20) < 10, -1, torch.arange(20) % 2)
    known = nearest_neighbours(vectors[10:], half[10:], groups[10:])
    assert nearest_neighbours(vectors, half, groups) == known
    assert math.isnan(nearest_neighbours(vectors, torch.arange(20) % 2, torch.zeros(20).long()))
