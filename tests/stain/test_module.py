"""StainNormalizer equals `normalize`, as a module and as a transform of a data loader."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from stainssl.stain import StainNormalizer, estimate, normalize
from tests.stain.synthetic import stain_vectors, tile, to_images


@pytest.fixture
def images(rng: np.random.Generator) -> Tensor:
    return to_images([tile(rng, stain_vectors(rng)) for _ in range(4)])


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_the_fitted_module_normalizes_to_the_pooled_profile(images: Tensor, method: str) -> None:
    profiles = estimate(images, method)
    out = StainNormalizer.fit(images, method)(images)
    assert torch.equal(out, normalize(images, profiles, profiles.pooled()))
    assert out.dtype == images.dtype


def test_one_tile_gives_the_same_as_in_a_batch(images: Tensor) -> None:
    normalizer = StainNormalizer(estimate(images)[0])
    assert torch.equal(normalizer(images[1]), normalizer(images)[1])


def test_a_tile_without_stain_is_unchanged_or_uses_the_fallback(images: Tensor) -> None:
    profiles = estimate(images)
    empty = torch.full((1, 3, 64, 64), 240, dtype=torch.uint8)
    assert torch.equal(StainNormalizer(profiles[0])(empty), empty)
    out = StainNormalizer(profiles[0], fallback=profiles[1])(empty)
    assert torch.equal(out, normalize(empty, profiles[1], profiles[0]))


def test_target_is_saved_and_loaded(images: Tensor) -> None:
    one, other = StainNormalizer(estimate(images)[0]), StainNormalizer(estimate(images)[1])
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(one(images), other(images))


def test_gradients_are_finite(images: Tensor) -> None:
    floats = (images / 255).requires_grad_()
    nn.Sequential(StainNormalizer(estimate(images)[0]))(floats).sum().backward()
    assert floats.grad is not None
    assert floats.grad.isfinite().all()


class Tiles(Dataset[Tensor]):
    def __init__(self, images: Tensor, transform: nn.Module) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


def test_the_module_is_a_transform_in_the_workers_of_a_data_loader(images: Tensor) -> None:
    normalizer = StainNormalizer.fit(images)
    (batch,) = DataLoader(Tiles(images, normalizer), batch_size=4, num_workers=1)
    assert torch.equal(batch, normalizer(images))


def test_invalid_targets_and_fallbacks_are_refused(images: Tensor) -> None:
    profiles = estimate(images)
    with pytest.raises(ValueError, match="one valid profile"):
        StainNormalizer(profiles)
    with pytest.raises(ValueError, match="family"):
        StainNormalizer(profiles[0], fallback=estimate(images, "reinhard")[0])
