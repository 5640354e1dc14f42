"""Grey levels, optical density, and the constants in which implementations of one method differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_VALUES = 1 << 18  # of a working array at once, 1 MB: 4 MB took twice the time on one core


@dataclass(frozen=True)
class Constants:
    """What implementations of one method differ in.

    Optical density is −log((I + offset) / io) and back I = io · base^−OD − offset. The defaults
    map white (255) to an optical density of 0 and are the exact inverse of each other; Veta's
    published outputs need `Constants(io=240)`.

    Attributes:
        io: intensity of the background, in grey levels.
        offset: added to grey levels so that black has an optical density.
        beta: a pixel is tissue where every channel's optical density is at least this.
        alpha: percentile of angles that counts as the extreme, and 100 − alpha.
        scale_percentile: percentile of concentrations that counts as a stain's strength.
        log_base: of the optical density; sets the unit of `beta` and of profiles' scales.
        max_pixels: larger images are estimated from a regular subsample of at most this many
            pixels (every k-th in reading order); None takes all.
        penalty: of Vahadane's sparsity, per unit of concentration (natural logarithm).
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
    """(B, 3, P) float32 grey levels 0–255 of (B, 3, H, W) uint8, or float in [0, 1].

    Raises:
        ValueError: another shape or dtype.
    """
    check_images(images)
    if images.dtype == torch.uint8:
        return images.flatten(2).float()
    return images.flatten(2).float().nan_to_num().clamp(0, 1) * 255


def check_images(images: Tensor) -> None:
    """Refuse what is not a batch of RGB images.

    Raises:
        ValueError: another shape than (B, 3, H, W), or neither uint8 nor float.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W); found {tuple(images.shape)}.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images must be uint8, or float in [0, 1]; found {images.dtype}.")


def optical_density(grey: Tensor, constants: Constants = DEFAULTS) -> Tensor:
    """Optical density of grey levels 0–255, in units of `constants.log_base`; shape kept."""
    unit = math.log(constants.log_base)
    return (math.log(constants.io) - (grey + constants.offset).log()) / unit


def chunk_images(images: Tensor) -> int:
    """How many images to work on at once: few enough that working arrays stay in the cache."""
    pixels = images.shape[-2] * images.shape[-1]
    return len(images) or 1 if images.is_cuda else max(1, CHUNK_VALUES // max(1, 3 * pixels))


def subsampled(images: Tensor, max_pixels: int | None) -> Tensor:
    """(B, C, 1, P) of at most `max_pixels` pixels of each image, every k-th; all where None."""
    pixels = images.shape[-2] * images.shape[-1]
    if max_pixels is None or pixels <= max_pixels:
        return images
    # A stride that shares a factor with the width would take whole columns only.
    stride = -(-pixels // max_pixels)
    while math.gcd(stride, images.shape[-1]) > 1:
        stride += 1
    return images.flatten(2)[..., ::stride].unsqueeze(-2)
