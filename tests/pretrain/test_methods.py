"""Methods share crops and jitter; the stain-invariant view carries its target's stain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stainssl.pretrain.methods import METHODS, Recipe, SimClr, Stain, StainInvariant
from stainssl.stain import StainProfile, estimate
from stainssl.stain.targets import BatchTarget, PoolTarget
from tests.pretrain.world import images, profiles

COUNT = 8
TILES = np.concatenate([images(COUNT // 2, "a"), images(COUNT // 2, "b", 1)])
BATCH = torch.from_numpy(TILES).permute(0, 3, 1, 2).contiguous()
NUMBERS = torch.arange(COUNT)
PLAIN = Recipe(48, "none", 0)


def _stain(method="macenko", normalised="one", policy=None, found=None):
    found = profiles(TILES, method) if found is None else found
    policy = policy or BatchTarget(found.pooled())
    return Stain(found, ["a"] * 4 + ["b"] * 4, policy, normalised)


def _restained_to(policy, normalised="one"):
    return StainInvariant(PLAIN, _stain(normalised=normalised, policy=policy))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.trains])
def test_a_seed_and_a_step_decide_the_views(name):
    def views(seed, step):
        return METHODS[name](Recipe(32, "strong", seed), _stain()).views(BATCH, NUMBERS, step)

    first, second = views(1, 5)
    assert first.shape == second.shape == (COUNT, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip((first, second), views(1, 5), strict=True))
    assert not torch.equal(first, views(1, 6)[0])
    assert not torch.equal(first, views(2, 5)[0])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("colour", ["none", "weak", "strong"])
def test_the_first_view_is_simclrs(colour):
    recipe = Recipe(32, colour, 3)
    ours = StainInvariant(recipe, _stain()).views(BATCH, NUMBERS, 7)
    theirs = SimClr(recipe, None).views(BATCH, NUMBERS, 7)
    assert torch.equal(ours[0], theirs[0])
    assert not torch.allclose(ours[1], theirs[1], atol=0.02)


@pytest.mark.parametrize("target", [0, 5])
def test_the_second_view_has_the_targets_stain(target):
    wanted = profiles(TILES)[target]
    _, second = _restained_to(PoolTarget(wanted.batched())).views(BATCH, NUMBERS, 0)
    found = estimate(second)
    assert bool(found.valid.any())
    cosine = torch.nn.functional.cosine_similarity(found.matrix, wanted.matrix[None], dim=2)
    given = profiles(TILES).matrix
    before = torch.nn.functional.cosine_similarity(given, wanted.matrix[None], dim=2)
    assert float(cosine[found.valid].min()) > 0.98
    assert float(cosine[found.valid].mean()) > float(before.mean())


def test_an_image_that_is_its_own_target_keeps_its_stain():
    target = PoolTarget(profiles(TILES)[[2]])
    _, second = _restained_to(target).views(BATCH, NUMBERS, 0)
    _, crop = SimClr(PLAIN, None).views(BATCH, NUMBERS, 0)
    torch.testing.assert_close(second[2], crop[2], atol=0.06, rtol=0)


def test_reinhard_gives_the_targets_lab_statistics():
    found = profiles(TILES, "reinhard")
    stain = _stain("reinhard", policy=PoolTarget(found[[6]]), found=found)
    _, second = StainInvariant(PLAIN, stain).views(BATCH, NUMBERS, 0)
    _, crop = SimClr(PLAIN, None).views(BATCH, NUMBERS, 0)
    want = float(BATCH[6].float().mean() / 255)
    assert float((second.mean((1, 2, 3)) - want).abs()[:4].mean()) < float(
        (crop.mean((1, 2, 3)) - want).abs()[:4].mean()
    )


def test_which_views_are_normalised():
    plain = SimClr(PLAIN, None).views(BATCH, NUMBERS, 1)
    target = PoolTarget(profiles(TILES)[[5]])
    one = _restained_to(target, "one").views(BATCH, NUMBERS, 1)
    same = _restained_to(target, "same").views(BATCH, NUMBERS, 1)
    assert torch.equal(one[0], plain[0]) and not torch.equal(one[1], plain[1])
    assert not torch.equal(same[0], plain[0]) and torch.equal(same[1], one[1])
    two = PoolTarget(profiles(TILES)[[0, 5]])
    drawn = [_restained_to(two, "different").views(BATCH, NUMBERS, step) for step in range(8)]
    again = [_restained_to(two, "same").views(BATCH, NUMBERS, step) for step in range(8)]
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(drawn, again, strict=True))


def test_a_tile_without_a_profile_keeps_its_colours():
    found = profiles(TILES).to_arrays()
    found["valid"] = np.array([False] + [True] * (COUNT - 1))
    stain = _stain(found=StainProfile.from_arrays("macenko", found))
    _, second = StainInvariant(PLAIN, stain).views(BATCH, NUMBERS, 0)
    _, crop = SimClr(PLAIN, None).views(BATCH, NUMBERS, 0)
    assert torch.equal(second[0], crop[0])
    assert not torch.equal(second[1:], crop[1:])


def test_a_batch_without_any_profile_is_left_as_it_is():
    found = profiles(TILES)
    none = StainProfile.from_arrays("macenko", {**found.to_arrays(), "valid": [False] * COUNT})
    stain = _stain(policy=BatchTarget(found.pooled()), found=none)
    _, second = StainInvariant(PLAIN, stain).views(BATCH, NUMBERS, 0)
    assert torch.equal(second, SimClr(PLAIN, None).views(BATCH, NUMBERS, 0)[1])
