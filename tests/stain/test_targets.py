"""Stain targets: policies, pools of profiles, and target files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stainssl.stain import StainProfile, targets
from stainssl.stain.targets import BatchTarget, PoolTarget, SiteTarget


def profiles(n: int, seed: int = 0, valid: list[bool] | None = None) -> StainProfile:
    g = torch.Generator().manual_seed(seed)
    reference = StainProfile.reference("macenko").batched().to_arrays()
    matrix = torch.tensor(reference["matrix"]) + 0.1 * torch.rand(n, 2, 3, generator=g)
    matrix = matrix / matrix.norm(dim=-1, keepdim=True)
    scale = 0.5 + torch.rand(n, 2, generator=g)
    return StainProfile.from_arrays(
        "macenko", {"matrix": matrix, "scale": scale, "valid": valid or [True] * n}
    )


def part(n: int, slides: int = 4, seed: int = 0, prefix: str = "s") -> dict:
    rng = np.random.default_rng(seed)
    found = profiles(n, seed, valid=list(rng.random(n) < 0.8))
    return {
        "method": "macenko",
        "arrays": found.to_arrays(),
        "slide": [f"{prefix}{i}" for i in range(slides)],
        "site": [("a", "b")[i % 2] for i in range(slides)],
        "row": rng.integers(0, slides, n),
        "tile": np.arange(n, dtype=np.int32),
        "seed": 3,
        "limit": 50,
    }


def indices_in(drawn: StainProfile, of: StainProfile) -> list[int]:
    """Index of each drawn profile in `of`; -1 if there is none."""
    same = (drawn.batched().scale[:, None] == of.batched().scale[None]).all(-1)
    return [int(row.float().argmax()) if row.any() else -1 for row in same]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_batch_draws_every_valid_image_and_no_invalid_one():
    found = profiles(4, valid=[True, False, True, True])
    policy = BatchTarget(StainProfile.reference("macenko"))
    g = generator()
    drawn = {indices_in(policy.draw(found, g), found)[0] for _ in range(100)}
    assert drawn == {0, 2, 3}


def test_batch_per_image_draws_one_for_each_image():
    found = profiles(64)
    drawn = BatchTarget(StainProfile.reference("macenko"), per="image").draw(found, generator())
    assert len(drawn) == 64
    assert len(set(indices_in(drawn, found))) > 20


@pytest.mark.parametrize("per", targets.PER)
def test_batch_without_a_valid_image_draws_the_fallback(per):
    fallback = profiles(1, seed=9)[0]
    drawn = BatchTarget(fallback, per).draw(profiles(3, valid=[False] * 3), generator())
    assert drawn.valid.all()
    assert torch.equal(drawn.batched().scale[0], fallback.scale)


def test_the_same_seed_draws_the_same_targets():
    found, policy = profiles(16), BatchTarget(StainProfile.reference("macenko"))
    once, again = (policy.draw(found, generator(5)) for _ in range(2))
    assert torch.equal(once.scale, again.scale)


def test_pool_target_draws_all_candidates():
    candidates = profiles(5)
    g, policy = generator(), PoolTarget(candidates)
    assert {indices_in(policy.draw(profiles(2), g), candidates)[0] for _ in range(200)} == set(
        range(5)
    )


def test_site_target_never_draws_the_own_site():
    candidates = profiles(6)
    sites = ("a", "a", "a", "a", "b", "c")
    policy, g = SiteTarget(candidates, sites, "image"), generator()
    own = ["a", "b", "c"] * 100
    drawn = [sites[i] for i in indices_in(policy.draw(profiles(300), g, own), candidates)]
    assert all(a != b for a, b in zip(drawn, own, strict=True))
    of_c = [site for site, mine in zip(drawn, own, strict=True) if mine == "c"]
    assert 0.3 < of_c.count("b") / len(of_c) < 0.7  # sites, not tiles, are equally likely


def test_site_target_with_one_site_draws_it():
    policy = SiteTarget(profiles(2), ("a", "a"))
    assert policy.draw(profiles(3), generator(), ["a"] * 3).valid


def content(policy: str, per: str = "iteration", n: int = 3) -> dict:
    found = profiles(n)
    return {
        "schema": targets.SCHEMA,
        "policy": policy,
        "per": per,
        "fallback": targets.profile_to_json(StainProfile.reference("macenko")),
        "candidates": [
            {"site": "ab"[i % 2], "profile": targets.profile_to_json(found[i])} for i in range(n)
        ],
    }


@pytest.mark.parametrize("per", targets.PER)
@pytest.mark.parametrize("policy", targets.POLICIES)
def test_every_policy_loads_and_draws_valid_profiles(policy, per, tmp_path: Path):
    path = tmp_path / "target.json"
    path.write_text(json.dumps(content(policy, per)))
    drawn = targets.load(path).draw(profiles(4), generator(), list("abab"))
    assert drawn.valid.all()
    assert drawn.is_batch == (per == "image")


@pytest.mark.parametrize("policy", targets.POLICIES)
def test_a_policy_without_candidates_draws_the_fallback(policy):
    policy = targets.load(content(policy, n=0))
    drawn = policy.draw(profiles(2, valid=[False, False]), generator(), ["a", "b"])
    assert torch.equal(drawn.scale, StainProfile.reference("macenko").scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": 7}, "schema 7"), ({"policy": "best"}, "best"), ({"per": "epoch"}, "epoch")],
)
def test_unknown_content_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        targets.load(content("batch") | change)


def test_profiles_are_converted_to_json_and_back():
    found = profiles(1)[0]
    text = json.dumps(targets.profile_to_json(found))
    back = targets.profile_from_json(json.loads(text))
    assert torch.equal(back.matrix, found.matrix)
    assert not back.is_batch


@settings(deadline=None, max_examples=25)
@given(cut=st.integers(0, 200), seed=st.integers(0, 1000))
def test_a_pool_does_not_depend_on_the_division_into_parts(cut, seed):
    whole = part(200, seed=seed)

    def rows(keep: slice) -> dict:
        arrays = {name: value[keep] for name, value in whole["arrays"].items()}
        return whole | {"arrays": arrays, "row": whole["row"][keep], "tile": whole["tile"][keep]}

    one = targets.pool(**whole)
    two = targets.merged(
        targets.pool(**rows(slice(cut, None))), targets.pool(**rows(slice(0, cut)))
    )
    assert one.tiles == two.tiles
    assert one.valid == two.valid
    assert list(one.key) == list(two.key)
    assert list(one.tile) == list(two.tile)
    np.testing.assert_allclose(one.mean().matrix, two.mean().matrix, atol=1e-6)


def test_the_sample_of_a_pool_is_uniform_and_limited():
    kept = targets.pool(**part(20_000) | {"limit": 2000})
    assert len(kept.key) == 2000
    assert (np.diff(kept.key) >= 0).all()
    assert 0.45 < (kept.site == "a").mean() < 0.55
    assert abs(kept.tile.mean() / 20_000 - 0.5) < 0.05


def test_a_pool_without_valid_tiles_has_a_mean_and_no_candidates():
    invalid_part = part(10)
    invalid_part["arrays"]["valid"][:] = False
    empty = targets.pool(**invalid_part)
    assert empty.mean().valid
    assert all(targets.choose(empty, policy) == [] for policy in ("cohort", "medoid", "spread"))


def test_two_million_profiles_are_pooled_in_limited_memory():
    total = None
    for i in range(20):
        block = targets.pool(**part(100_000, seed=i, prefix=f"p{i}-") | {"limit": 1000})
        total = block if total is None else targets.merged(total, block)
    total_bytes = sum(a.nbytes for a in [*total.sample.values(), total.key, total.tile])
    assert sum(total.tiles.values()) == 2_000_000
    assert len(total.key) == 1000
    assert total_bytes < 1000 * 64


def test_medoid_spread_and_site_choose_as_defined():
    kept = targets.pool(**part(200))
    points = kept.profiles().coordinates()
    [middle] = targets.choose(kept, "medoid")
    assert torch.cdist(points, points).sum(1).argmin() == middle
    spread = targets.choose(kept, "spread", count=5)
    assert len(set(spread)) == 5
    radius = targets.nearest_distance(points, points[spread]).max()
    assert radius < targets.nearest_distance(points, points[[middle]]).max()
    assert {kept.site[i] for i in targets.choose(kept, "site", drawn=10)} == {"a", "b"}


def test_farthest_points_of_equal_points_is_one_point():
    assert targets.farthest_points(torch.zeros(10, 3), 4) == [0]
