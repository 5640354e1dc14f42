"""Conversion between sRGB and LAB agrees with scikit-image and can be inverted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stainssl.stain.lab import lab_to_rgb, rgb_to_lab


def pixels(rng: np.random.Generator) -> np.ndarray:
    """(N, 3) sRGB in [0, 1]: random, dark, grey, and the corners of the cube."""
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * 3), -1).reshape(-1, 3)
    grey = np.linspace(0, 1, 256)[:, None].repeat(3, 1)
    return np.concatenate([rng.random((2000, 3)), 0.05 * rng.random((200, 3)), grey, corners])


def test_lab_agrees_with_scikit_image(rng):
    color = pytest.importorskip("skimage.color")
    rgb = pixels(rng)
    ours = rgb_to_lab(torch.from_numpy(rgb.T[None]).float())[0].T
    assert np.abs(ours.numpy() - color.rgb2lab(rgb)).max() < 0.05


def test_lab_to_rgb_inverts_rgb_to_lab(rng):
    rgb = torch.from_numpy(pixels(rng).T[None]).float()
    assert (lab_to_rgb(rgb_to_lab(rgb)) - rgb).abs().max() < 2e-3


def test_colors_outside_the_gamut_are_clipped():
    lab = torch.tensor([[[150.0, -50, 50], [200, -200, 0], [0, 200, -200]]])
    rgb = lab_to_rgb(lab)
    assert rgb.isfinite().all()
    assert rgb.min() >= 0
    assert rgb.max() <= 1
