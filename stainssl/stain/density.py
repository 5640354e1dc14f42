"""Grey levels, optical density, and the constants of stain estimation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_VALUES = 1 << 18  # values per working array (1 MB): 4 MB took twice the time on one core


@dataclass(frozen=True)
class Constants:
    """Constants in which published implementations of a method differ.

    Optical density is OD = −log((I + offset) / io), and inversely I = io · base^−OD − offset.
    With the defaults, white (255) has an optical density of 0. Veta's published outputs need
    `Constants(io=240)`.

    Attributes:
        io: intensity of the background, in grey levels.
        offset: added to grey levels, so that the optical density of black is finite.
        beta: least optical density, in every channel, of a tissue pixel.
        alpha: percentile of the angles at which the stain vectors lie (and 100 − alpha).
        scale_percentile: percentile of the concentrations that is a stain's scale.
        log_base: base of the logarithm; sets the unit of `beta` and of the scales of profiles.
        max_pixels: larger images are estimated from a regular subsample of at most this many
            pixels (every k-th in row-major order); None uses all pixels.
        penalty: sparsity penalty of Vahadane's method, per unit of concentration (natural
            logarithm).
    """

    io: float = 256.0
    offset: float = 1.0
    beta: float = 0.15
    alpha: float = 1.0
    scale_percentile: float = 99.0
    log_base: float = math.e
    max_pixels: int | None = 1 << 16
    penalty: float = 0.01


DEFAULTS = Constants()


def grey_levels(images: Tensor) -> Tensor:
    """Convert (B, 3, H, W) uint8, or float in [0, 1], to (B, 3, P) float32 grey levels 0–255.

    Floats are clamped to [0, 1], and NaN is 0.

    Raises:
        ValueError: another shape or dtype.
    """
    check_images(images)
    if images.dtype == torch.uint8:
        return images.flatten(2).float()
    return images.flatten(2).float().nan_to_num().clamp(0, 1) * 255


def check_images(images: Tensor) -> None:
    """Check that `images` is a batch of RGB images.

    Raises:
        ValueError: another shape than (B, 3, H, W), or neither uint8 nor float.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W); found {tuple(images.shape)}.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images must be uint8, or float in [0, 1]; found {images.dtype}.")


def optical_density(grey: Tensor, constants: Constants = DEFAULTS) -> Tensor:
    """Optical density of grey levels 0–255, to base `constants.log_base`; same shape."""
    unit = math.log(constants.log_base)
    return (math.log(constants.io) - (grey + constants.offset).log()) / unit


def chunk_images(images: Tensor) -> int:
    """Number of images to process at once: so few on a CPU that working arrays fit in the cache."""
    pixels = images.shape[-2] * images.shape[-1]
    return len(images) or 1 if images.is_cuda else max(1, CHUNK_VALUES // max(1, 3 * pixels))


def subsampled(images: Tensor, max_pixels: int | None) -> Tensor:
    """Take every k-th pixel of each image, at most `max_pixels`: (B, C, 1, P).

    Images with no more pixels than that, or any if it is None, are returned unchanged.
    """
    pixels = images.shape[-2] * images.shape[-1]
    if max_pixels is None or pixels <= max_pixels:
        return images
    # A stride that shares a factor with the width would sample only some of the columns.
    stride = -(-pixels // max_pixels)
    while math.gcd(stride, images.shape[-1]) > 1:
        stride += 1
    return images.flatten(2)[..., ::stride].unsqueeze(-2)
