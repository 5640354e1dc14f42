"""Stain augmentations: determined by the seed, independent for each image, and finite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from stainssl.stain import StainProfile, estimate
from stainssl.stain.augment import LabSpread, hed_jitter, rand_stain_na, stain_mix
from tests.stain import synthetic
from tests.stain.test_estimate import adversarial_batch

Augmentation = Callable[[Tensor, Generator], Tensor]


def tiles_of_several_stains(n: int, size: int = 48) -> Tensor:
    """(n, 3, size, size) float in [0, 1], of n different stains."""
    rng = np.random.default_rng(0)
    tiles = [synthetic.tile(rng, synthetic.stain_vectors(rng), size=size) for _ in range(n)]
    return synthetic.to_images(tiles).float() / 255


def randstain(images: Tensor, g: Generator) -> Tensor:
    own = estimate(images, "reinhard")
    spread = LabSpread.of(own.where_valid(StainProfile.reference("reinhard")))
    return rand_stain_na(images, g, own, spread)


def mixed(images: Tensor, g: Generator) -> Tensor:
    return stain_mix(images, g, estimate(images), strength=0.2)


AUGMENTATIONS: dict[str, Augmentation] = {
    "hed": hed_jitter,
    "randstainna": randstain,
    "mix": mixed,
}
every_augmentation = pytest.mark.parametrize("name", AUGMENTATIONS)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


@every_augmentation
def test_the_same_seed_gives_the_same_images(name):
    images, augment = tiles_of_several_stains(4), AUGMENTATIONS[name]
    once, again, other = (augment(images, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@every_augmentation
def test_equal_images_are_augmented_independently(name):
    images = tiles_of_several_stains(2)[[0, 0, 1, 1]]
    out = AUGMENTATIONS[name](images, seeded())
    assert (out[0] - out[1]).abs().mean() > 1e-3


@every_augmentation
def test_uint8_and_float_agree(name):
    images = (tiles_of_several_stains(3) * 255).round().to(torch.uint8)
    as_float = AUGMENTATIONS[name](images / 255, seeded()) * 255
    difference = AUGMENTATIONS[name](images, seeded()).float() - as_float
    assert difference.abs().quantile(0.99) <= 1


@every_augmentation
def test_gradients_are_finite_and_reach_the_image(name):
    images = torch.cat(
        [tiles_of_several_stains(2), torch.zeros(1, 3, 48, 48), torch.ones(1, 3, 48, 48)]
    )
    images.requires_grad_()
    AUGMENTATIONS[name](images, seeded()).sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad[:2].abs().sum() > 0


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(sorted(AUGMENTATIONS)))
def test_unusual_tiles_give_finite_values_from_0_to_1(seed, name):
    out = AUGMENTATIONS[name](adversarial_batch(seed) / 255, seeded(seed))
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1


@every_augmentation
def test_an_empty_batch_gives_an_empty_batch(name):
    empty, own = torch.zeros(0, 3, 8, 8), estimate(tiles_of_several_stains(2), "reinhard")
    none = estimate(empty, "reinhard")
    out = {
        "hed": lambda: hed_jitter(empty, seeded()),
        "randstainna": lambda: rand_stain_na(empty, seeded(), none, LabSpread.of(own)),
        "mix": lambda: stain_mix(empty, seeded(), estimate(empty)),
    }
    assert out[name]().shape == (0, 3, 8, 8)


@pytest.mark.parametrize("name", ["randstainna", "mix"])
def test_one_profile_equals_the_same_profile_for_each_image(name):
    images = tiles_of_several_stains(3)
    one = {"mix": estimate(images)[0], "randstainna": estimate(images, "reinhard")[0]}[name]
    spread = LabSpread.of(estimate(images, "reinhard"))

    def out(source: StainProfile) -> Tensor:
        if name == "mix":
            return stain_mix(images, seeded(), source)
        return rand_stain_na(images, seeded(), source, spread)

    torch.testing.assert_close(out(one), out(StainProfile.cat([one] * 3)))


def test_hed_jitter_of_strength_0_is_the_identity():
    images = torch.rand(2, 3, 32, 32, generator=seeded())
    assert (hed_jitter(images, seeded(), 0) - images).abs().max() < 1e-4


def test_the_change_by_hed_jitter_increases_with_strength():
    images = tiles_of_several_stains(8)
    change = [(hed_jitter(images, seeded(), s) - images).abs().mean() for s in (0.02, 0.05, 0.2)]
    assert change == sorted(change)


def test_hed_jitter_uses_the_basis_of_scikit_image():
    """The same draw with scikit-image's HED matrix, without clipping negative stains."""
    color = pytest.importorskip("skimage.color")
    pixels = tiles_of_several_stains(1)
    alpha, beta = (2 * torch.rand(2, 1, 3, generator=seeded(3)) - 1) * 0.1
    basis = color.rgb_from_hed / np.linalg.norm(color.rgb_from_hed, axis=1, keepdims=True)
    density = -np.log((pixels[0].permute(1, 2, 0).double().numpy() * 255 + 1) / 256)
    stains = density @ np.linalg.inv(basis)
    jittered = (stains * (1 + alpha[0].numpy()) + beta[0].numpy()) @ basis
    expected = np.clip(256 * np.exp(-jittered) - 1, 0, 255)
    found = hed_jitter(pixels, seeded(3), 0.1)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found - expected).max() < 0.05


def test_lab_spread_is_estimated_from_the_valid_tiles():
    own = estimate(torch.cat([tiles_of_several_stains(6), torch.ones(1, 3, 48, 48)]), "reinhard")
    spread = LabSpread.of(own)
    torch.testing.assert_close(spread.centre[0], own.mean[:6].mean(0))
    torch.testing.assert_close(spread.spread[1], own.std[:6].std(0, correction=0))


def test_templates_are_drawn_from_the_lab_spread():
    spread = LabSpread(torch.tensor([[50.0, 20, -20], [15, 8, 8]]), torch.ones(2, 3))
    drawn = spread.draw(4000, seeded())
    torch.testing.assert_close(drawn.mean.mean(0), spread.centre[0], atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.std.std(0), torch.ones(3), atol=0.1, rtol=0)


def test_rand_stain_na_of_strength_0_is_reinhard_to_the_centre():
    images = tiles_of_several_stains(4)
    own = estimate(images, "reinhard")
    spread = LabSpread.of(own)
    found = estimate(rand_stain_na(images, seeded(), own, spread, strength=0), "reinhard")
    assert (found.mean - spread.centre[0]).abs().max() < 2


def test_mixed_stain_vectors_are_between_the_two():
    images = tiles_of_several_stains(2, size=96)
    own = estimate(images)
    found = estimate(stain_mix(images[:1], seeded(), own[:1], own[1:]))
    whole = (own.coordinates()[0] - own.coordinates()[1]).norm()
    parts = sum((own.coordinates()[i] - found.coordinates()[0]).norm() for i in (0, 1))
    assert parts < 1.5 * whole


def test_mixing_with_the_own_profile_hardly_changes_the_image():
    images = tiles_of_several_stains(1)
    own = estimate(images)
    out = stain_mix(images, seeded(), own, own)
    assert (out - images).abs().quantile(0.95) < 0.03


@pytest.mark.parametrize("name", ["randstainna", "mix"])
def test_tiles_without_a_valid_profile_are_unchanged(name):
    images = torch.cat([tiles_of_several_stains(2), torch.full((1, 3, 48, 48), 0.9)])
    out = AUGMENTATIONS[name](images, seeded())
    assert torch.equal(out[2], images[2])
    assert not torch.equal(out[0], images[0])


def test_an_invalid_partner_is_never_drawn():
    images = torch.cat([tiles_of_several_stains(1), torch.ones(7, 3, 48, 48)])
    own = estimate(images)
    for seed in range(20):
        out = stain_mix(images[:1], seeded(seed), own[:1], own)
        assert torch.allclose(out, stain_mix(images[:1], seeded(seed), own[:1], own[:1]), atol=1e-5)


def test_wrong_profiles_and_strengths_are_refused():
    images = tiles_of_several_stains(2)
    stains, lab = estimate(images), estimate(images, "reinhard")
    with pytest.raises(ValueError, match="two-stain"):
        stain_mix(images, seeded(), lab)
    with pytest.raises(ValueError, match="reinhard profiles"):
        rand_stain_na(images, seeded(), stains, LabSpread.of(lab))
    with pytest.raises(ValueError, match="strength"):
        hed_jitter(images, seeded(), -1)
    with pytest.raises(ValueError, match="No valid"):
        LabSpread.of(estimate(torch.ones(2, 3, 8, 8), "reinhard"))
