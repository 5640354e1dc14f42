"""Restaining changes tissue but not glass, and is determined by the seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.robustness_measure import od_shift
from stainssl.stain import StainProfile, estimate
from stainssl.stain.restain import restain_reinhard
from tests.stain import synthetic
from tests.stain.test_estimate import ADVERSARIAL, adversarial_batch


@pytest.fixture
def tiles(rng: np.random.Generator) -> Tensor:
    """Four tiles with a band of glass."""
    rendered = [synthetic.tile(rng, synthetic.stain_vectors(rng), size=64) for _ in range(4)]
    for tile in rendered:
        tile[:, :16] = 255
    return synthetic.to_images(rendered)


def test_reinhard_matches_the_tissue_to_the_profile(tiles):
    goal = StainProfile.from_arrays(
        "reinhard", {"mean": [60, 20, -10], "std": [9, 5, 5], "valid": True}
    )
    found = estimate(restain_reinhard(tiles, goal), "reinhard")
    assert (found.mean - goal.mean).abs().max() < 3


def test_glass_is_unchanged(tiles):
    goal = StainProfile.reference("reinhard")
    assert (restain_reinhard(tiles, goal)[..., :16] >= 254).all()
    assert (od_shift(tiles, torch.Generator(), 0.5)[..., :16] >= 254).all()


def test_restaining_each_image_with_its_own_profile_changes_nothing(tiles):
    own = estimate(tiles, "reinhard")
    assert (restain_reinhard(tiles, own).int() - tiles.int()).abs().max() <= 1


def test_od_shift_of_strength_0_changes_nothing(tiles):
    assert (od_shift(tiles, torch.Generator(), 0).int() - tiles.int()).abs().max() <= 1


def test_od_shift_is_determined_by_the_seed_and_increases_with_strength(tiles):
    def change(strength: float) -> Tensor:
        out = od_shift(tiles, torch.Generator().manual_seed(1), strength)
        return (out.float() - tiles.float()).abs().mean()

    assert change(0.3) == change(0.3)
    assert change(0.1) < change(0.3) < change(0.6)


def test_images_are_shifted_independently():
    images = torch.full((2, 3, 8, 8), 120, dtype=torch.uint8)
    out = od_shift(images, torch.Generator().manual_seed(0), 0.3)
    assert not torch.equal(out[0], out[1])


def test_unusual_tiles_give_finite_values_from_0_to_1(rng):
    goal = StainProfile.reference("reinhard")
    unusual = [synthetic.to_images([make(rng)]) for make in ADVERSARIAL.values()]
    for images in (*unusual, adversarial_batch(0)):
        for out in (
            restain_reinhard(images / 255, goal),
            od_shift(images / 255, torch.Generator(), 1),
        ):
            assert out.isfinite().all()
            assert out.min() >= 0
            assert out.max() <= 1


def test_profiles_that_do_not_fit_are_refused(tiles):
    with pytest.raises(ValueError, match="reinhard profile"):
        restain_reinhard(tiles, estimate(tiles))
    with pytest.raises(ValueError, match="3 profiles for 4 images"):
        restain_reinhard(tiles, estimate(tiles, "reinhard")[:3])
    with pytest.raises(ValueError, match="strength"):
        od_shift(tiles, torch.Generator(), -1)
