"""Stain normalization: published output, idempotence, and finite values not above white."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stainssl.stain import METHODS, Constants, StainProfile, estimate, normalize, separate
from tests.stain import synthetic
from tests.stain.test_estimate import ADVERSARIAL, adversarial_batch, read

PUBLISHED = Constants(io=240, max_pixels=None)
ALL_PIXELS = Constants(beta=-torch.inf, max_pixels=None)


def mae(a: Tensor, b: Tensor) -> float:
    """Mean absolute error in grey levels."""
    return float((a.float() - b.float()).abs().mean())


def tiles(n: int, seed: int = 0, **known: object) -> Tensor:
    rng = np.random.default_rng(seed)
    return synthetic.to_images(
        [synthetic.tile(rng, synthetic.stain_vectors(rng), size=64, **known) for _ in range(n)]
    )


def camelyon(real_data: Path) -> Tensor:
    paths = sorted((real_data / "camelyon17-centres").glob("*.png"))
    return torch.cat([read(path)[..., :256, :256] for path in paths])


def test_output_agrees_with_published_images(real_data):
    folder = real_data / "stain-reference"
    source, reference = read(folder / "source.png"), StainProfile.reference("macenko")
    profile = estimate(source, constants=PUBLISHED)
    out = normalize(source, profile, reference, constants=PUBLISHED)
    assert mae(out, read(folder / "normalized.png")) < 1
    stains = separate(source, profile, reference, constants=PUBLISHED)
    for stain, name in zip(stains, ("hematoxylin", "eosin"), strict=True):
        assert mae(stain, read(folder / f"{name}.png")) < 1


def macenko_in_numpy(od: np.ndarray, tissue: np.ndarray, io: float) -> np.ndarray:
    """(P, 3) grey levels from (P, 3) densities of one image, with the published reference."""
    inside = od[tissue]
    _, vectors = np.linalg.eigh(np.cov(inside.T))
    basis = vectors[:, 1:] * np.where(vectors[:, 1:].sum(0) < 0, -1, 1)
    angle = np.arctan2(*(inside @ basis).T[[0, 1]])
    extremes = np.percentile(angle, [1, 99])
    stains = np.stack([np.sin(extremes), np.cos(extremes)], -1) @ basis.T
    stains = stains[np.argsort(-stains[:, 0])]
    concentration = np.linalg.lstsq(stains.T, od.T, rcond=None)[0]
    reference = StainProfile.reference("macenko").to_arrays()
    gain = reference["scale"] / np.percentile(concentration, 99, axis=1)
    return np.clip(io * np.exp(-(concentration * gain[:, None]).T @ reference["matrix"]), 0, 255)


def veta(image: np.ndarray) -> np.ndarray:
    """Macenko as published by Veta, of which torchstain is a port, for one (H, W, 3) image."""
    od = -np.log((image.reshape(-1, 3).astype(float) + 1) / 240)
    return macenko_in_numpy(od, ~(od < 0.15).any(1), 240).reshape(image.shape)


def lightness_mask(image: np.ndarray) -> np.ndarray:
    """Tissue mask of tiatoolbox: lightness below 0.8 after stretching the contrast to 2–98 %."""
    low, high = np.percentile(image, (2, 98))
    stretched = (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(stretched, cv2.COLOR_RGB2LAB)[..., 0] / 255 < 0.8


def tiatoolbox(image: np.ndarray) -> np.ndarray:
    """Macenko as in tiatoolbox for one (H, W, 3) image; `benchmarks/stain.py` runs tiatoolbox."""
    od = np.maximum(-np.log(np.maximum(image.reshape(-1, 3), 1) / 255), 1e-6)
    return macenko_in_numpy(od, lightness_mask(image).ravel(), 255).reshape(image.shape)


def test_macenko_agrees_with_the_published_algorithm_on_real_tiles(real_data):
    images = camelyon(real_data)
    profile = estimate(images, constants=PUBLISHED)
    ours = normalize(images, profile, StainProfile.reference("macenko"), constants=PUBLISHED)
    for i in torch.nonzero(profile.valid)[:, 0]:
        expected = torch.from_numpy(veta(images[i].permute(1, 2, 0).numpy())).permute(2, 0, 1)
        assert mae(ours[i], expected) < 1.5


def test_macenko_agrees_with_tiatoolbox_on_real_tiles_with_its_mask(real_data):
    images, constants = camelyon(real_data), Constants(io=255, offset=0.5, max_pixels=None)
    arrays = images.permute(0, 2, 3, 1).numpy()
    mask = torch.from_numpy(np.stack([lightness_mask(a) for a in arrays]))
    own = estimate(images, constants=constants, tissue=mask)
    assert own.valid.float().mean() > 0.8
    ours = normalize(images, own, StainProfile.reference("macenko"), constants=constants)
    for i in torch.nonzero(own.valid)[:, 0]:
        expected = torch.from_numpy(tiatoolbox(arrays[i])).permute(2, 0, 1)
        assert mae(ours[i], expected) < 3


def opencv_reinhard(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Reinhard over all pixels in OpenCV's 8-bit LAB, as tiatoolbox and StainTools do."""
    lab, goal = (cv2.cvtColor(a, cv2.COLOR_RGB2LAB).astype(float) for a in (image, target))
    gain = goal.std((0, 1)) / lab.std((0, 1))
    normalized = (lab - lab.mean((0, 1))) * gain + goal.mean((0, 1))
    return cv2.cvtColor(np.clip(normalized, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)


def test_reinhard_agrees_with_opencv_on_real_tiles(real_data):
    images, target = camelyon(real_data), read(real_data / "stain-reference" / "target.png")
    goal = estimate(target, "reinhard", ALL_PIXELS)[0]
    ours = normalize(images, estimate(images, "reinhard", ALL_PIXELS), goal)
    for image, out in zip(images, ours, strict=True):
        arrays = (image.permute(1, 2, 0).numpy(), target[0].permute(1, 2, 0).numpy())
        expected = torch.from_numpy(opencv_reinhard(*arrays))
        assert mae(out, expected.permute(2, 0, 1)) < 3


def profile_of(seed: int, scale: tuple[float, float] = (1.2, 1.0)) -> StainProfile:
    matrix = synthetic.stain_vectors(np.random.default_rng(seed))
    return StainProfile.from_arrays("macenko", {"matrix": matrix, "scale": scale, "valid": True})


def soft_images(seed: int) -> Tensor:
    """(2, 3, 8, 8) float images of medium optical density, so that maps hardly clip."""
    rng = np.random.default_rng(seed)
    density = rng.uniform(0.35, 0.5, (2, 3, 8, 8)) + rng.uniform(0, 0.4, (2, 1, 8, 8))
    return torch.from_numpy((256 * np.exp(-density) - 1) / 255).float()


seeds = st.integers(0, 10_000)


@settings(deadline=None, max_examples=50)
@given(image=seeds, p=seeds, q=seeds, s=seeds)
def test_normalizing_is_idempotent_and_path_independent(image, p, q, s):
    images, source = soft_images(image), profile_of(s)
    to_p, to_q = profile_of(p, (1.0, 0.9)), profile_of(q, (1.1, 1.2))
    direct = normalize(images, source, to_p)
    via = normalize(images, source, to_q)
    inside = ((direct > 0) & (direct < 1) & (via > 0) & (via < 1)).all(1, keepdim=True)
    again = normalize(direct, to_p, to_p)
    via_other = normalize(via, to_q, to_p)
    assert ((again - direct).abs() * inside).max() < 2e-4
    assert ((via_other - direct).abs() * inside).max() < 2e-4


def test_uint8_is_idempotent_and_path_independent_within_rounding():
    images = tiles(8)
    own, p, q = estimate(images), profile_of(1), profile_of(2)
    direct = normalize(images, own, p)
    for other in (normalize(direct, p, p), normalize(normalize(images, own, q), q, p)):
        difference = (other.float() - direct.float()).abs().flatten()
        assert difference.sort().values[int(0.99 * len(difference))] <= 3


def test_noiseless_tiles_are_unchanged_by_their_own_profile(rng):
    for seed in range(5):
        matrix = synthetic.stain_vectors(rng)
        image = synthetic.tile(np.random.default_rng(seed), matrix, noise=0, quality=None)
        images = synthetic.to_images([image])
        arrays = {"matrix": matrix, "scale": (1.0, 1.0), "valid": True}
        own = StainProfile.from_arrays("macenko", arrays)
        assert (normalize(images, own, own).int() - images.int()).abs().max() <= 1


def test_normalization_to_the_own_profile_with_the_residual_is_the_identity(real_data):
    images = camelyon(real_data)
    own = estimate(images)
    kept = normalize(images, own, own, keep_residual=True)
    assert (kept.int() - images.int()).abs().max() <= 1
    assert mae(normalize(images, own, own), images) > 0.5  # a projection without the residual


@pytest.mark.parametrize("method", METHODS)
def test_a_normalized_image_has_the_stain_of_the_target(method):
    images = tiles(6, noise=0.5, quality=None)
    own = estimate(images, method)
    out = estimate(normalize(images, own, own[0]), method)
    before = (own.coordinates() - own[0].coordinates()).norm(dim=-1)[1:].mean()
    after = (out.coordinates() - own[0].coordinates()).norm(dim=-1)[1:].mean()
    assert after < 0.5 * before


@pytest.mark.parametrize("method", METHODS)
def test_one_target_per_image_equals_each_image_alone(method, rng):
    images = tiles(5)
    own = estimate(images, method)
    order = torch.from_numpy(rng.permutation(5))
    whole = normalize(images, own, own[order])
    for i in range(5):
        single = normalize(images[i : i + 1], own[i], own[int(order[i])])
        assert (single.int() - whole[i : i + 1].int()).abs().max() <= 1
    permuted = normalize(images[order], own[order], own[order][order])
    assert (permuted.int() - whole[order].int()).abs().max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_float_and_uint8_agree(method):
    images = tiles(3)
    own = estimate(images, method)
    as_float = normalize(images / 255, own, own[0]) * 255
    assert (as_float.round() - normalize(images, own, own[0])).abs().max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_finite(method):
    images = torch.cat([tiles(2) / 255, torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)])
    images.requires_grad_()
    own = estimate(images, method)
    normalize(images, own, own[0]).sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad[:2].abs().sum() > 0


@settings(deadline=None, max_examples=40)
@given(seed=seeds, method=st.sampled_from(sorted(METHODS)))
def test_unusual_tiles_give_finite_output_from_0_to_1(seed, method):
    images = adversarial_batch(seed)
    own = estimate(images, method)
    goal = StainProfile.reference(method)
    out = normalize(images / 255, own.where_valid(goal), own[seed % len(own)])
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_unusual_sources_and_targets_give_finite_output(name, method, rng):
    images = torch.cat([synthetic.to_images([ADVERSARIAL[name](rng)]), tiles(1)])
    own = estimate(images, method)
    assert normalize(images / 255, own, own.where_valid(own[1])[0]).isfinite().all()


def test_optical_densities_of_separated_stains_add_up():
    images = tiles(2, noise=0, quality=None) / 255
    own = estimate(images)
    h, e = separate(images, own)
    both = normalize(images, own, own)
    density = [-(255 * image + 1).log() + np.log(256) for image in (h, e, both)]
    inside = ((h < 1) & (e < 1) & (both < 1) & (both > 0)).all(1, keepdim=True)
    assert ((density[0] + density[1] - density[2]).abs() * inside).max() < 1e-3


def test_an_empty_batch_gives_an_empty_batch():
    images = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    assert normalize(images, estimate(images), profile_of(0)).shape == images.shape


def test_profiles_that_do_not_fit_are_refused():
    images = tiles(3)
    own, lab = estimate(images), estimate(images, "reinhard")
    with pytest.raises(ValueError, match="family"):
        normalize(images, own, lab[0])
    with pytest.raises(ValueError, match="2 target profiles for 3 images"):
        normalize(images, own, own[:2])
    with pytest.raises(ValueError, match="no stain vectors"):
        separate(images, lab)


def test_float_images_in_grey_levels_are_refused() -> None:
    images = tiles(2)
    own, goal = estimate(images), StainProfile.reference("macenko")
    normalize(images.float() / 255, own, goal)
    with pytest.raises(ValueError, match="divide them by 255"):
        normalize(images.float(), own, goal)
