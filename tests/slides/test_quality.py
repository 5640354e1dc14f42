"""Figures of tiles mean what they say."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stainssl.slides.quality import figures

BOX = np.array([[0.0, 0, 128, 128], [128, 0, 256, 128]])


def texture(rng: np.random.Generator, sigma: float, contrast: float = 40) -> np.ndarray:
    grey = rng.standard_normal((128, 256)).astype(np.float32)
    if sigma:
        grey = cv2.GaussianBlur(grey, (0, 0), sigma)
    grey = 128 + contrast * grey / grey.std()
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_blur_lowers_sharpness_and_noise_is_twenty(rng: np.random.Generator) -> None:
    values = [figures(texture(rng, s), BOX).sharpness[0] for s in (0, 0.7, 1.5, 3, 6)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(20, rel=0.1)
    assert values[-1] < 0.05


def test_sharpness_does_not_depend_on_contrast(rng: np.random.Generator) -> None:
    state = rng.bit_generator.state
    strong = figures(texture(rng, 1, 40), BOX).sharpness
    rng.bit_generator.state = state
    assert figures(texture(rng, 1, 10), BOX).sharpness == pytest.approx(strong, rel=0.1)


def test_a_flat_tile_has_no_sharpness() -> None:
    assert np.isnan(figures(np.full((128, 256, 3), 243, np.uint8), BOX).sharpness).all()


def test_saturation_and_density_are_means_over_each_tile() -> None:
    image = np.full((128, 256, 3), 255, np.uint8)
    image[:, 128:] = (200, 100, 150)
    found = figures(image, BOX)
    density = -np.log10((np.array([200, 100, 150]) + 1) / 256).mean()
    assert found.saturation == pytest.approx([0, 0.5], abs=0.01)
    assert found.od == pytest.approx([0, density], abs=1e-3)
    assert found.od.dtype == found.sharpness.dtype == np.float32


def test_boxes_past_the_edge_are_cut(rng: np.random.Generator) -> None:
    found = figures(texture(rng, 0), np.array([[-3.0, 100, 300.0, 140.0]]))
    assert np.isfinite(found.sharpness).all()
