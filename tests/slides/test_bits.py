"""Morphology of packed masks equals that of OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stainssl.slides.bits import Bits, Shape, ellipse, square


def _kernel(shape: Shape) -> np.ndarray:
    """OpenCV's structuring element of the half widths of a shape."""
    radius = len(shape) // 2
    reach = np.abs(np.arange(-radius, radius + 1))
    return (reach <= shape[:, None]).astype(np.uint8)


@given(
    height=st.integers(1, 40), width=st.integers(1, 150), radius=st.integers(1, 35),
    filled=st.sampled_from([0.02, 0.5, 0.98]), seed=st.integers(0, 9),
    make=st.sampled_from([ellipse, square]),
)  # fmt: skip
def test_morphology_equals_opencvs(height, width, radius, filled, seed, make):
    mask = np.random.default_rng(seed).random((height, width)) < filled
    shape, pixels = make(radius), mask.astype(np.uint8)
    bits, within = Bits.of(mask, radius), Bits.of(np.ones_like(mask), radius)
    kernel = _kernel(shape)
    closed = cv2.morphologyEx(np.pad(pixels, radius), cv2.MORPH_CLOSE, kernel)
    inner = np.s_[radius:-radius, radius:-radius]
    expected = {
        "grown": (bits.grown(shape), cv2.dilate(pixels, kernel)),
        "shrunk": (bits.shrunk(shape, within), cv2.erode(pixels, kernel)),
        "opened": (bits.opened(shape, within), cv2.morphologyEx(pixels, cv2.MORPH_OPEN, kernel)),
        "closed": (bits.closed(shape), closed[inner]),
    }
    for name, (ours, theirs) in expected.items():
        np.testing.assert_array_equal(ours.mask(), theirs.astype(bool), name)


@pytest.mark.parametrize("radius", [1, 2, 3, 7, 20])
def test_an_ellipse_equals_opencvs(radius: int) -> None:
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    np.testing.assert_array_equal(_kernel(ellipse(radius)), element)


def test_set_operations_are_pixelwise(rng: np.random.Generator) -> None:
    one, two = (rng.random((9, 70)) < 0.5 for _ in range(2))
    first, second = Bits.of(one, 2), Bits.of(two, 2)
    np.testing.assert_array_equal(first.mask(), one)
    np.testing.assert_array_equal((first & second).mask(), one & two)
    np.testing.assert_array_equal((first | second).mask(), one | two)
    np.testing.assert_array_equal((first - second).mask(), one & ~two)
