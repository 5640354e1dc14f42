"""Sharpness, saturation and optical density of tiles."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stainssl.slides.quality import measure_quality

BOX = np.array([[0.0, 0, 128, 128], [128, 0, 256, 128]])


def texture(rng: np.random.Generator, sigma: float, contrast: float = 40) -> np.ndarray:
    grey = rng.standard_normal((128, 256)).astype(np.float32)
    if sigma:
        grey = cv2.GaussianBlur(grey, (0, 0), sigma)
    grey = 128 + contrast * grey / grey.std()
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_blur_lowers_sharpness_and_white_noise_has_20(rng: np.random.Generator) -> None:
    values = [measure_quality(texture(rng, s), BOX).sharpness[0] for s in (0, 0.7, 1.5, 3, 6)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(20, rel=0.1)
    assert values[-1] < 0.05


def test_sharpness_does_not_depend_on_contrast(rng: np.random.Generator) -> None:
    state = rng.bit_generator.state
    strong = measure_quality(texture(rng, 1, 40), BOX).sharpness
    rng.bit_generator.state = state
    assert measure_quality(texture(rng, 1, 10), BOX).sharpness == pytest.approx(strong, rel=0.1)


def test_the_sharpness_of_a_flat_tile_is_nan() -> None:
    assert np.isnan(measure_quality(np.full((128, 256, 3), 243, np.uint8), BOX).sharpness).all()


def test_saturation_and_density_are_means_over_each_tile() -> None:
    image = np.full((128, 256, 3), 255, np.uint8)
    image[:, 128:] = (200, 100, 150)
    found = measure_quality(image, BOX)
    density = -np.log10((np.array([200, 100, 150]) + 1) / 256).mean()
    assert found.saturation == pytest.approx([0, 0.5], abs=0.01)
    assert found.od == pytest.approx([0, density], abs=1e-3)
    assert found.od.dtype == found.sharpness.dtype == np.float32


def test_boxes_beyond_the_edge_are_clipped(rng: np.random.Generator) -> None:
    found = measure_quality(texture(rng, 0), np.array([[-3.0, 100, 300.0, 140.0]]))
    assert np.isfinite(found.sharpness).all()


def _one_tile(image: np.ndarray, box: np.ndarray) -> tuple[float, float, float]:
    """The measures of one tile by their definitions."""
    x0, y0, x1, y1 = np.rint(box).astype(int)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
    padded = np.pad(grey, 1, "reflect")
    edges = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
    part = image[y0:y1, x0:x1].astype(float)
    most, least = part.max(axis=2), part.min(axis=2)
    saturation = np.rint(255 * (most - least) / np.maximum(most, 1))
    return (
        edges[y0:y1, x0:x1].var() / grey[y0:y1, x0:x1].var(),
        saturation.mean() / 255,
        -np.log10((part + 1) / 256).mean(),
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.floats(8, 40), st.floats(0.3, 1.2))
def test_tiles_that_overlap_or_touch_an_edge_agree_with_the_definition(
    seed: int, side: float, stride: float
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (90, 70, 3), np.uint8)
    y, x = np.meshgrid(np.arange(0, 90 - side, stride * side), np.arange(0, 70 - side, 11.0))
    boxes = np.column_stack([x.ravel(), y.ravel(), x.ravel() + side, y.ravel() + side])
    boxes = rng.permutation(boxes)
    found = measure_quality(image, boxes)
    wanted = np.array([_one_tile(image, box) for box in boxes])
    np.testing.assert_allclose(found.sharpness, wanted[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.saturation, wanted[:, 1], atol=0.002)  # ties round differently
    np.testing.assert_allclose(found.od, wanted[:, 2], rtol=1e-5)
