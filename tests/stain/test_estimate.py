"""Stain estimates: published values, recovery of known stain vectors, and finite results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from stainssl.stain import METHODS, Constants, StainProfile, estimate, normalize
from stainssl.stain.estimate import principal_axes
from tests.stain import synthetic


def read(path: Path) -> Tensor:
    """(1, 3, H, W) uint8."""
    return synthetic.to_images([np.asarray(Image.open(path).convert("RGB"))])


def angles(found: Tensor, truth: Tensor) -> Tensor:
    """Degrees between (..., 3) unit vectors."""
    return torch.rad2deg((found * truth).sum(-1).clamp(-1, 1).acos())


@pytest.fixture(scope="module")
def known() -> tuple[Tensor, Tensor]:
    """500 tiles of varying stain ratio and noise, and the vectors they were rendered with."""
    rng = np.random.default_rng(0)
    truth = [synthetic.stain_vectors(rng) for _ in range(500)]
    tiles = [
        synthetic.tile(rng, matrix, rng.uniform(0.2, 0.8), rng.uniform(1, 3)) for matrix in truth
    ]
    return synthetic.to_images(tiles), torch.tensor(np.stack(truth)).float()


@pytest.mark.parametrize(("method", "median", "tail"), [("macenko", 2, 6), ("vahadane", 3, 8)])
def test_known_vectors_are_recovered(method, median, tail, known):
    tiles, truth = known
    profile = estimate(tiles, method)
    assert profile.valid.all()
    error = angles(profile.matrix, truth)
    assert error.median() <= median
    assert error.quantile(0.95) <= tail


def test_only_pixels_in_the_tissue_mask_are_used(rng):
    tiles = synthetic.to_images([synthetic.tile(rng, size=64) for _ in range(2)])
    other = synthetic.tile(rng, synthetic.stain_vectors(rng), size=64)
    both = torch.cat([tiles, synthetic.to_images([other, other])], -1)
    left = torch.zeros(2, 64, 128, dtype=torch.bool)
    left[..., :64] = True
    for method in METHODS:
        masked = estimate(both, method, tissue=left)
        alone = estimate(tiles, method, tissue=left[..., :64])
        whole = estimate(both, method)
        names = [name for name in alone.tensors if name not in ("valid", "scale")]
        for name in names:
            torch.testing.assert_close(
                masked.tensors[name], alone.tensors[name], atol=5e-3, rtol=5e-3
            )
            far = (whole.tensors[name] - alone.tensors[name]).abs().max()
            assert method == "ruifrok" or far > 0.02


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="tissue must be"):
        estimate(torch.zeros(1, 3, 8, 8), tissue=torch.ones(1, 4, 4, dtype=torch.bool))


def test_estimates_agree_with_published_vectors(real_data):
    source = read(real_data / "stain-reference" / "source.png")
    published = [[0.5415, 0.7520, 0.3759], [0.2086, 0.8044, 0.5563]]
    whole = estimate(source, constants=Constants(io=240, max_pixels=None))
    assert (whole.matrix[0] - torch.tensor(published)).abs().max() < 3e-4
    sampled = estimate(source, constants=Constants(io=240))
    assert angles(sampled.matrix[0], torch.tensor(published)).max() < 0.5


def test_the_base_of_the_logarithm_changes_only_the_scales():
    tiles = synthetic.to_images([synthetic.tile(np.random.default_rng(0))])
    natural = estimate(tiles)
    decimal = estimate(tiles, constants=Constants(beta=0.15 / np.log(10), log_base=10))
    assert torch.allclose(natural.matrix, decimal.matrix, atol=1e-4)
    assert torch.allclose(natural.scale, decimal.scale * np.log(10), rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_estimates_do_not_depend_on_the_batch_or_its_order(method, rng):
    tiles = synthetic.to_images([synthetic.tile(rng, size=64) for _ in range(9)])
    order = torch.from_numpy(rng.permutation(9))
    whole = estimate(tiles, method)
    singles = StainProfile.cat([estimate(tile[None], method) for tile in tiles])
    permuted = estimate(tiles[order], method)
    for name, value in whole.tensors.items():
        torch.testing.assert_close(singles.tensors[name], value, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(permuted.tensors[name], value[order], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_gives_an_empty_profile(method):
    assert len(estimate(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), method)) == 0


@pytest.mark.parametrize("method", METHODS)
def test_float_images_give_the_profile_of_uint8(method, rng):
    tiles = synthetic.to_images([synthetic.tile(rng, size=64)])
    for name, value in estimate(tiles, method).tensors.items():
        again = estimate(tiles / 255, method).tensors[name]
        torch.testing.assert_close(again, value, rtol=1e-3, atol=1e-3)


def test_hematoxylin_is_first_whatever_the_share(rng):
    tiles = [synthetic.tile(rng, share=share) for share in np.linspace(0.15, 0.85, 15)]
    matrix = estimate(synthetic.to_images(tiles)).matrix
    assert (matrix[:, 0, 0] > matrix[:, 1, 0]).all()
    truth = torch.tensor(synthetic.H_AND_E).float()
    truth = truth / truth.norm(dim=-1, keepdim=True)
    assert angles(matrix, truth).max() < 6


def ink(color: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """A tile with ink of a felt pen on glass."""
    tile = np.full((64, 64, 3), 250.0)
    density = np.log(255 / np.array(color)) * rng.uniform(0.5, 1.3, (64, 40, 1))
    tile[:, 10:50] = 255 * np.exp(-density)
    return np.clip(tile + rng.normal(0, 2, tile.shape), 0, 255).astype(np.uint8)


def one_stain(rng: np.random.Generator, stain: int, quality: int | None) -> np.ndarray:
    concentration = np.zeros((64, 64, 2))
    concentration[..., stain] = 0.3 + 1.2 * synthetic.smooth(rng, 64, 4)
    grey = synthetic.render(concentration, synthetic.stain_vectors(rng))
    image = np.clip(grey + rng.normal(0, 1, grey.shape), 0, 255).astype(np.uint8)
    return synthetic.jpeg(image, quality) if quality else image


def speck(rng: np.random.Generator) -> np.ndarray:
    tile = np.full((64, 64, 3), 245, np.uint8)
    tile[:8, :8] = synthetic.tile(rng, size=64)[:8, :8]
    return tile


def ramp() -> np.ndarray:
    return np.repeat(np.linspace(0, 255, 64)[:, None, None].repeat(64, 1), 3, 2).astype(np.uint8)


ADVERSARIAL = {
    "white": lambda rng: np.full((64, 64, 3), 255, np.uint8),
    "black": lambda rng: np.zeros((64, 64, 3), np.uint8),
    "constant": lambda rng: np.full((64, 64, 3), (150, 80, 160), np.uint8),
    "grey ramp": lambda rng: ramp(),
    "hematoxylin alone": lambda rng: one_stain(rng, 0, None),
    "eosin alone": lambda rng: one_stain(rng, 1, None),
    "hematoxylin alone, JPEG": lambda rng: one_stain(rng, 0, 80),
    "eosin alone, JPEG": lambda rng: one_stain(rng, 1, 80),
    "almost empty": speck,
    "green ink": lambda rng: ink((30, 140, 60), rng),
    "blue ink": lambda rng: ink((40, 60, 160), rng),
    "red ink": lambda rng: ink((200, 30, 50), rng),
    "black ink": lambda rng: ink((25, 25, 28), rng),
    "saturated": lambda rng: (synthetic.tile(rng, size=64) > 150).astype(np.uint8) * 255,
    "random colors": lambda rng: rng.integers(0, 256, (64, 64, 3), np.uint8),
}


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_tiles_without_h_and_e_are_not_valid(name, method, rng):
    tiles = synthetic.to_images([ADVERSARIAL[name](rng) for _ in range(10)])
    assert not estimate(tiles, method).valid.any()


@pytest.mark.parametrize("name", ["white", "black", "constant", "almost empty"])
@pytest.mark.parametrize("method", METHODS)
def test_tiles_without_contrast_are_not_valid_for_any_method(method, name, rng):
    assert not estimate(synthetic.to_images([ADVERSARIAL[name](rng)]), method).valid.any()


def adversarial_batch(seed: int) -> Tensor:
    """256 tiles of 16 px: constants, two colors, few levels, gradients, noise, one hot pixel."""
    rng = np.random.default_rng(seed)
    shape = (256, 3, 16, 16)
    kind = rng.integers(0, 6, 256)
    base = rng.integers(0, 256, (256, 3, 1, 1)) * np.ones(shape)
    other = rng.integers(0, 256, (256, 3, 1, 1))
    pick = rng.random((256, 1, 16, 16)) < rng.random((256, 1, 1, 1))
    hot = base.copy()
    hot[:, :, 3, 3] = rng.integers(0, 256, (256, 3))
    tiles = [
        base,
        np.where(pick, base, other),
        rng.integers(0, 2, shape) * 255,
        base * np.linspace(0, 1, 16),
        rng.integers(0, 256, shape),
        hot,
    ]
    return torch.from_numpy(np.choose(kind[:, None, None, None], tiles).astype(np.uint8))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(sorted(METHODS)))
def test_unusual_tiles_give_finite_profiles(seed, method):
    profile = estimate(adversarial_batch(seed), method)
    assert all(value.isfinite().all() for value in profile.tensors.values())


def test_principal_axes_equal_those_of_torch(rng):
    spread = torch.from_numpy(rng.normal(size=(200, 3, 3)) * [1, 0.1, 0.01])
    covariance = spread @ spread.mT
    values, vectors = principal_axes(covariance)
    expected, their_vectors = torch.linalg.eigh(covariance)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-9)
    assert ((vectors * their_vectors).sum(1).abs() > 1 - 1e-6).all()


def test_principal_axes_of_zeros_and_the_identity_are_finite():
    flat = torch.zeros(2, 3, 3, dtype=torch.float64)
    flat[1] = torch.eye(3)
    assert all(found.isfinite().all() for found in principal_axes(flat))


@pytest.mark.parametrize("method", METHODS)
def test_no_value_is_read_back_from_the_device(method):
    """On tensors without data (device meta), where reading a value raises an error."""
    images = torch.empty(4, 3, 32, 32, dtype=torch.uint8, device="meta")
    profile = estimate(images, method)
    assert normalize(images, profile, profile[0]).shape == images.shape
    assert not normalize(images, profile.where_valid(profile[1]), profile).is_cpu


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), -1.0, 7.0])
def test_floats_out_of_range_give_finite_profiles(fill):
    profile = estimate(torch.full((2, 3, 8, 8), fill))
    assert all(value.isfinite().all() for value in profile.tensors.values())
    assert not profile.valid.any()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(B, 3, H, W\)"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.uint8), r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int32), "int32"),
    ],
)
def test_other_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        estimate(images)


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="macenko, vahadane, ruifrok, reinhard"):
        estimate(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "vahadan")


def test_most_real_tiles_are_valid(real_data):
    paths = sorted((real_data / "camelyon17-centres").glob("*.png"))
    tiles = torch.cat([read(path) for path in paths])
    assert all(estimate(tiles, method).valid.all() for method in METHODS)
