"""Stain profiles: indexing, fallback, pooling, and conversion to arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stainssl.stain import METHODS, LabStats, StainProfile, TwoStain, estimate
from tests.stain import synthetic


@pytest.fixture
def profile(rng: np.random.Generator) -> StainProfile:
    """Profiles of four tiles, the third of which is white."""
    tiles = [synthetic.tile(rng, synthetic.stain_vectors(rng), size=64) for _ in range(4)]
    tiles[2][:] = 255
    return estimate(synthetic.to_images(tiles))


@pytest.mark.parametrize("method", METHODS)
def test_profiles_are_converted_to_arrays_and_back(method, rng):
    found = estimate(synthetic.to_images([synthetic.tile(rng, size=32) for _ in range(3)]), method)
    arrays = found.to_arrays()
    names = {"mean", "std"} if method == "reinhard" else {"matrix", "scale"}
    assert set(arrays) == names | {"valid"}
    assert all(len(value) == 3 for value in arrays.values())
    back = StainProfile.from_arrays(method, arrays)
    assert type(back) is type(found)
    assert all(torch.equal(back.tensors[name], found.tensors[name]) for name in arrays)


def test_indexing_and_concatenation(profile):
    assert not profile[2].is_batch
    assert profile[2].matrix.shape == (2, 3)
    assert len(profile[1:3]) == 2
    assert len(profile[[0, 3]]) == 2
    assert len(profile[profile.valid]) == 3
    assert len(StainProfile.cat([profile, profile[0]])) == 5


def test_where_valid_replaces_only_invalid_profiles(profile):
    fallback = profile[0]
    filled = profile.where_valid(fallback)
    assert filled.valid.all()
    assert torch.equal(filled.matrix[2], fallback.matrix)
    assert torch.equal(filled.scale[3], profile.scale[3])


def test_where_valid_with_an_invalid_fallback_stays_invalid(profile):
    assert profile.where_valid(profile[2]).valid.tolist() == [True, True, False, True]


def test_pooled_is_the_mean_of_the_valid_profiles(profile):
    pooled = profile.pooled()
    assert pooled.valid
    assert not pooled.is_batch
    torch.testing.assert_close(pooled.scale, profile.scale[[0, 1, 3]].mean(0))
    torch.testing.assert_close(pooled.matrix.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize("method", METHODS)
def test_pooled_without_valid_profiles_is_the_reference_and_invalid(method):
    white = torch.full((3, 3, 16, 16), 255, dtype=torch.uint8)
    pooled = estimate(white, method).pooled()
    assert not pooled.valid
    reference = StainProfile.reference(method)
    for name in reference.REFERENCE:
        torch.testing.assert_close(pooled.tensors[name], reference.tensors[name])


def test_coordinates_are_in_degrees(profile):
    axes = StainProfile.from_arrays(
        "macenko",
        {"matrix": [[1, 0, 0], [0, 1, 0]], "scale": [1, 1], "valid": True},
    )
    angle = np.radians(2)
    rotated = StainProfile.from_arrays(
        "macenko",
        {"matrix": [[np.cos(angle), np.sin(angle), 0], [0, 1, 0]], "scale": [1, 1], "valid": True},
    )
    distance = (axes.coordinates() - rotated.coordinates()).norm()
    assert abs(distance - 2) < 0.01


def test_profile_class_of_each_method():
    assert isinstance(StainProfile.reference("ruifrok"), TwoStain)
    assert isinstance(StainProfile.reference("reinhard"), LabStats)


def test_invalid_arguments_are_refused(profile):
    with pytest.raises(ValueError, match="family"):
        profile.where_valid(StainProfile.reference("reinhard"))
    with pytest.raises(ValueError, match="known: macenko"):
        StainProfile.from_arrays("hed", {})
    with pytest.raises(ValueError, match="scale"):
        StainProfile.from_arrays("macenko", {"matrix": np.eye(3)[:2], "valid": True})
    with pytest.raises(TypeError, match="leading axis"):
        len(profile[0])
