"""Pretraining methods: shared crops and jitter, stain targets, shares of processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stainssl.pretrain.data import Batch
from stainssl.pretrain.methods import (
    PRETRAINING_METHODS,
    HedJitter,
    NormalizerState,
    RandStainNA,
    SimClr,
    StainInvariant,
    StainMix,
    StainTargets,
    TileNormalizer,
    ViewSettings,
)
from stainssl.stain import StainProfile, estimate
from stainssl.stain.targets import BatchTarget, PoolTarget
from tests.pretrain.world import images, profiles

COUNT = 8
TILES = np.concatenate([images(COUNT // 2, "a"), images(COUNT // 2, "b", 1)])
IMAGES = torch.from_numpy(TILES).permute(0, 3, 1, 2).contiguous()
NUMBERS = np.arange(COUNT)
BATCH = Batch(IMAGES, NUMBERS, NUMBERS)
PLAIN = ViewSettings(48, "none", 0)


def _sites(tiles):
    return ["ab"[i // 4] for i in tiles]


def _stain(method="macenko", normalized="one", policy=None, found=None, probability=1.0):
    found = profiles(TILES, method) if found is None else found
    policy = policy or BatchTarget(found.pooled())
    return StainTargets([NormalizerState(found, policy)], _sites, normalized, probability)


def _restained_to(policy, normalized="one"):
    return StainInvariant(PLAIN, _stain(normalized=normalized, policy=policy))


@pytest.mark.parametrize(
    "name", [name for name, method in PRETRAINING_METHODS.items() if method.trains]
)
def test_views_depend_on_seed_and_step_only(name):
    def views(seed, step):
        return PRETRAINING_METHODS[name](ViewSettings(32, "strong", seed), _stain()).views(
            BATCH, step
        )

    first, second = views(1, 5)
    assert first.shape == second.shape == (COUNT, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip((first, second), views(1, 5), strict=True))
    assert not torch.equal(first, views(1, 6)[0])
    assert not torch.equal(first, views(2, 5)[0])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("color", ["none", "weak", "strong"])
def test_the_first_view_equals_that_of_simclr(color):
    recipe = ViewSettings(32, color, 3)
    ours = StainInvariant(recipe, _stain()).views(BATCH, 7)
    theirs = SimClr(recipe, None).views(BATCH, 7)
    assert torch.equal(ours[0], theirs[0])
    assert not torch.allclose(ours[1], theirs[1], atol=0.02)


@pytest.mark.parametrize("target", [0, 5])
def test_the_second_view_has_the_targets_stain(target):
    wanted = profiles(TILES)[target]
    _, second = _restained_to(PoolTarget(wanted.batched())).views(BATCH, 0)
    found = estimate(second)
    assert bool(found.valid.any())
    cosine = torch.nn.functional.cosine_similarity(found.matrix, wanted.matrix[None], dim=2)
    given = profiles(TILES).matrix
    before = torch.nn.functional.cosine_similarity(given, wanted.matrix[None], dim=2)
    assert float(cosine[found.valid].min()) > 0.98
    assert float(cosine[found.valid].mean()) > float(before.mean())


def test_an_image_that_is_its_own_target_keeps_its_stain():
    target = PoolTarget(profiles(TILES)[[2]])
    _, second = _restained_to(target).views(BATCH, 0)
    _, crop = SimClr(PLAIN, None).views(BATCH, 0)
    torch.testing.assert_close(second[2], crop[2], atol=0.06, rtol=0)


def test_reinhard_moves_the_mean_color_towards_that_of_the_target():
    found = profiles(TILES, "reinhard")
    stain = _stain("reinhard", policy=PoolTarget(found[[6]]), found=found)
    _, second = StainInvariant(PLAIN, stain).views(BATCH, 0)
    _, crop = SimClr(PLAIN, None).views(BATCH, 0)
    want = float(IMAGES[6].float().mean() / 255)
    assert float((second.mean((1, 2, 3)) - want).abs()[:4].mean()) < float(
        (crop.mean((1, 2, 3)) - want).abs()[:4].mean()
    )


def test_the_key_views_selects_the_normalized_views():
    plain = SimClr(PLAIN, None).views(BATCH, 1)
    target = PoolTarget(profiles(TILES)[[5]])
    one = _restained_to(target, "one").views(BATCH, 1)
    same = _restained_to(target, "same").views(BATCH, 1)
    assert torch.equal(one[0], plain[0])
    assert not torch.equal(one[1], plain[1])
    assert not torch.equal(same[0], plain[0])
    assert torch.equal(same[1], one[1])
    two = PoolTarget(profiles(TILES)[[0, 5]])
    drawn = [_restained_to(two, "different").views(BATCH, step) for step in range(8)]
    again = [_restained_to(two, "same").views(BATCH, step) for step in range(8)]
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(drawn, again, strict=True))


def test_a_tile_without_a_profile_keeps_its_colors():
    found = profiles(TILES).to_arrays()
    found["valid"] = np.array([False] + [True] * (COUNT - 1))
    stain = _stain(found=StainProfile.from_arrays("macenko", found))
    _, second = StainInvariant(PLAIN, stain).views(BATCH, 0)
    _, crop = SimClr(PLAIN, None).views(BATCH, 0)
    assert torch.equal(second[0], crop[0])
    assert not torch.equal(second[1:], crop[1:])


def test_a_batch_without_any_profile_is_unchanged():
    found = profiles(TILES)
    none = StainProfile.from_arrays("macenko", {**found.to_arrays(), "valid": [False] * COUNT})
    stain = _stain(policy=BatchTarget(found.pooled()), found=none)
    _, second = StainInvariant(PLAIN, stain).views(BATCH, 0)
    assert torch.equal(second, SimClr(PLAIN, None).views(BATCH, 0)[1])


def _plain_views(step=0):
    return SimClr(PLAIN, None).views(BATCH, step)


def test_stain_probability_is_the_share_of_normalized_images():
    plain = _plain_views()[1]
    target = PoolTarget(profiles(TILES)[[5]])
    all_of_them = StainInvariant(PLAIN, _stain(policy=target)).views(BATCH, 0)[1]
    changed = []
    for step in range(20):
        some = StainInvariant(PLAIN, _stain(policy=target, probability=0.5)).views(BATCH, step)[1]
        untouched = _plain_views(step)[1]
        changed += [not torch.equal(a, b) for a, b in zip(some, untouched, strict=True)]
    assert 0.3 < np.mean(changed) < 0.7
    none = StainInvariant(PLAIN, _stain(policy=target, probability=0.0)).views(BATCH, 0)[1]
    assert torch.equal(none, plain)
    assert not torch.equal(all_of_them, plain)


def test_every_step_draws_a_normalizer():
    macenko, reinhard = (_stain(method).stainings[0] for method in ("macenko", "reinhard"))
    both = StainInvariant(PLAIN, StainTargets([macenko, reinhard], _sites))
    assert all(both.views(BATCH, step)[1].isfinite().all() for step in range(12))
    drawn = [both._staining(_rng(step)) for step in range(20)]
    assert {id(one) for one in drawn} == {id(macenko), id(reinhard)}


def _rng(seed):
    return torch.Generator().manual_seed(seed)


JITTERS = {
    "hed": HedJitter(0.2),
    "randstainna": RandStainNA(profiles(TILES, "reinhard"), 1.0),
    "mix": StainMix(profiles(TILES), 0.2),
}


@pytest.mark.parametrize("name", JITTERS)
def test_stain_jitter_changes_stain_and_not_structure(name):
    recipe = ViewSettings(48, "none", 0, stain_jitter=JITTERS[name])
    jittered, plain = SimClr(recipe, None).views(BATCH, 0), _plain_views()
    for seen, crop in zip(jittered, plain, strict=True):
        assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
        assert float((seen.mean((2, 3)) - crop.mean((2, 3))).abs().mean()) > 0.003
        grey = [images.mean(1).flatten(1) for images in (seen, crop)]
        correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(*grey, strict=True)]
        assert min(correlation) > 0.9
    again = SimClr(recipe, None).views(BATCH, 0)
    assert torch.equal(again[0], jittered[0])
    assert not torch.equal(jittered[0], jittered[1])


@pytest.mark.parametrize("name", JITTERS)
def test_each_process_makes_its_rows_of_the_views_of_a_step(name):
    method = SimClr(ViewSettings(48, "strong", 0, stain_jitter=JITTERS[name]), None)
    whole, half = method.views(BATCH, 3), len(BATCH.tile) // 2
    for rows in (slice(0, half), slice(half, 2 * half)):
        share = Batch(BATCH.images[rows], BATCH.tile[rows], BATCH.everyone, rows.start)
        for mine, all_views in zip(method.views(share, 3), whole, strict=True):
            assert torch.allclose(mine, all_views[rows], atol=1e-6)


def test_preprocessing_normalizes_every_view_to_one_stain():
    found = profiles(TILES)
    tile_normalizer = TileNormalizer(found, found[2])
    views = SimClr(ViewSettings(48, "none", 0, tile_normalizer=tile_normalizer), None).views(
        BATCH, 0
    )
    for view in views:
        seen = estimate(view)
        cosine = torch.nn.functional.cosine_similarity(seen.matrix, found[2].matrix[None], dim=2)
        assert float(cosine[seen.valid].min()) > 0.98


@pytest.mark.parametrize("normalized", ["one", "same", "different"])
@pytest.mark.parametrize("per", ["iteration", "image"])
def test_two_processes_make_the_halves_of_the_views_of_one(normalized, per):
    policy = BatchTarget(profiles(TILES).pooled(), per)
    stain = _stain(normalized=normalized, policy=policy, probability=0.7)
    method = StainInvariant(ViewSettings(32, "strong", 1), stain)
    whole = method.views(BATCH, 3)
    for start in (0, 4):
        rows = slice(start, start + 4)
        share = Batch(IMAGES[rows], NUMBERS[rows], NUMBERS, start)
        for half, one in zip(method.views(share, 3), whole, strict=True):
            torch.testing.assert_close(half, one[rows], atol=1e-5, rtol=0)
