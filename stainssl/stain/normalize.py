"""Stain normalization: one map per image from its own stain profile to a target's."""

from __future__ import annotations

import torch
from torch import Tensor

from stainssl.stain.backends import backend
from stainssl.stain.density import DEFAULTS, Constants
from stainssl.stain.estimate import unmix
from stainssl.stain.profile import LabStats, P, StainProfile, TwoStain

MAX_FLOAT = 2.0  # earlier color jitter may exceed 1 by a little


def normalize(
    images: Tensor,
    source: StainProfile,
    target: StainProfile,
    *,
    constants: Constants = DEFAULTS,
    keep_residual: bool = False,
) -> Tensor:
    """Normalize images from their stain profiles to a target profile.

    For two-stain profiles this is the map
    pinv(M_source) · diag(scale_target / scale_source) · M_target in optical density, which
    projects onto the plane of the target's stains. For Reinhard it is an affine map of each LAB
    channel.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1]; float is differentiable.
        source: profiles of the images, one per image (or one for all).
        target: one profile for all, or one per image, of the same family as `source`.
        constants: constants with which the profiles were estimated.
        keep_residual: add back the residual outside the plane of the source's stains (two stains
            only), so that normalizing to an image's own profile is the identity.

    Returns:
        (B, 3, H, W), dtype and device of `images`; finite, never brighter than white. An invalid
        source profile is the published reference, and the image is mapped from that; replace it
        with `source.where_valid(...)` if you have a better one.

    Raises:
        ValueError: the profiles are of different families, their number is not that of the
            images, or float images are not in [0, 1].
    """
    source._same_family(target)
    _refuse_levels(images)
    source, target = (
        _one_each(p, images, name) for p, name in ((source, "source"), (target, "target"))
    )
    if isinstance(source, TwoStain) and isinstance(target, TwoStain):
        matrix = stain_map(source, target)
        if keep_residual:
            matrix = matrix + torch.eye(3, device=images.device) - stain_map(source, source)
        return map_density(images, matrix, constants)
    assert isinstance(source, LabStats)
    assert isinstance(target, LabStats)
    gain = target.std / source.std.clamp_min(1e-6)
    return _map_lab(images, gain, target.mean - gain * source.mean)


def _refuse_levels(images: Tensor) -> None:
    """Refuse float images in 0–255, which would become white; every 8th row and column is read."""
    if images.is_floating_point() and images.numel() and not torch.compiler.is_compiling():
        most = float(images.detach()[..., ::8, ::8].amax())
        if most > MAX_FLOAT:
            raise ValueError(
                f"float images must be in [0, 1], but reach {most:.4g}: divide them by 255, or "
                "use uint8"
            )


def separate(
    images: Tensor,
    source: StainProfile,
    target: StainProfile | None = None,
    *,
    constants: Constants = DEFAULTS,
) -> tuple[Tensor, Tensor]:
    """Separate images into a hematoxylin and an eosin image (color deconvolution).

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1].
        source: two-stain profiles of the images, one per image (or one for all).
        target: profile whose stain vectors and scales the result has; None uses `source`.
        constants: constants with which the profiles were estimated.

    Returns:
        Hematoxylin and eosin images, each (B, 3, H, W) RGB of the images' dtype.

    Raises:
        ValueError: the profiles are not two-stain profiles, or their number is not that of the
            images.
    """
    target = source if target is None else target
    if not (isinstance(source, TwoStain) and isinstance(target, TwoStain)):
        raise ValueError(
            f"{source.method} profiles have no stain vectors to separate: use macenko."
        )
    source, target = _one_each(source, images, "source"), _one_each(target, images, "target")
    matrices = [stain_map(source, target, only=stain) for stain in (0, 1)]
    h, e = (map_density(images, matrix, constants) for matrix in matrices)
    return h, e


def stain_map(source: TwoStain, target: TwoStain, only: int | None = None) -> Tensor:
    """(B, 3, 3) maps of optical density (column vectors) from source to target stain.

    Args:
        source, target: batches of profiles, of equal length or of length 1.
        only: keep one stain (0 hematoxylin, 1 eosin); None keeps both.
    """
    gain = target.scale / source.scale.clamp_min(1e-6)
    if only is not None:
        gain = gain * torch.eye(2, device=gain.device)[only]
    return target.matrix.mT @ (gain[..., None] * unmix(source.matrix))


def map_density(
    images: Tensor,
    matrix: Tensor,
    constants: Constants = DEFAULTS,
    shift: Tensor | None = None,
) -> Tensor:
    """Apply affine maps to the optical density of images.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1].
        matrix: (B, 3, 3), or (1, 3, 3) for all.
        constants: constants of the optical density.
        shift: (B, 3), added after the matrix; None adds nothing.

    Returns:
        (B, 3, H, W) of the images' dtype, clipped to 0–255 or [0, 1].
    """
    count = len(images)
    shift = matrix.new_zeros(len(matrix), 3) if shift is None else shift
    matrix, shift = matrix.expand(count, 3, 3), shift.expand(count, 3)
    return backend(images, matrix, shift).map_density(images, matrix, shift, constants)


def _map_lab(images: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    gain, shift = gain.expand(len(images), 3), shift.expand(len(images), 3)
    return backend(images, gain, shift).map_lab(images, gain, shift)


def _one_each(profile: P, images: Tensor, name: str) -> P:
    profile = profile.batched().to(images.device)
    if len(profile) not in (1, len(images)):
        raise ValueError(
            f"{len(profile)} {name} profiles for {len(images)} images: give one, or one per image."
        )
    return profile
