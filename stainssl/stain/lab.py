"""Conversion between sRGB and CIE LAB (D65) for batches of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

# Linear sRGB to XYZ, divided by the D65 white point (IEC 61966-2-1), so that white is (1, 1, 1).
XYZ = (
    (0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754),
)
# L = 116 fy − 16, a = 500 (fx − fy), b = 200 (fy − fz).
LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
LAB_OFFSET = (-16.0, 0.0, 0.0)
# Each curve is linear below its knee and a power above it, and continuous.
CUBE_KNEE, CUBE_SLOPE = (6 / 29) ** 3, (29 / 6) ** 2 / 3
ROOT_KNEE, ROOT_SLOPE = 6 / 29, 3 * (6 / 29) ** 2
GAMMA_KNEE, LINEAR_KNEE = 0.04045, 0.04045 / 12.92


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert (B, 3, P) sRGB in [0, 1] to L (0–100), a, b; same shape and dtype."""
    xyz = rgb.new_tensor(XYZ) @ to_linear(rgb)
    f = _power(xyz.clamp_min(CUBE_KNEE), 1 / 3)
    f = f + (xyz.clamp_max(CUBE_KNEE) - CUBE_KNEE) * CUBE_SLOPE
    return rgb.new_tensor(LAB) @ f + rgb.new_tensor(LAB_OFFSET)[:, None]


def to_linear(rgb: Tensor) -> Tensor:
    """Convert sRGB in [0, 1] to linear light in [0, 1]; same shape."""
    high = _power((rgb.clamp_min(GAMMA_KNEE) + 0.055) / 1.055, 2.4)
    return high + (rgb.clamp_max(GAMMA_KNEE) - GAMMA_KNEE) / 12.92


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert (B, 3, P) L, a, b to sRGB in [0, 1]; colors outside the gamut are clipped."""
    f = torch.linalg.inv(lab.new_tensor(LAB)) @ (lab - lab.new_tensor(LAB_OFFSET)[:, None])
    xyz = f.clamp_min(ROOT_KNEE) ** 3 + (f.clamp_max(ROOT_KNEE) - ROOT_KNEE) * ROOT_SLOPE
    linear = (torch.linalg.inv(lab.new_tensor(XYZ)) @ xyz).clamp(0, 1)
    high = 1.055 * _power(linear.clamp_min(LINEAR_KNEE), 1 / 2.4) - 0.055
    return (high + (linear.clamp_max(LINEAR_KNEE) - LINEAR_KNEE) * 12.92).clamp(0, 1)


def _power(base: Tensor, exponent: float) -> Tensor:
    # A third of the time of torch.pow on a CPU; bases are positive.
    return (base.log() * exponent).exp()
