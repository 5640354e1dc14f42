"""Normalize images from their own stain to a target's: one linear map an image."""

from __future__ import annotations

import torch
from torch import Tensor

from stainssl.stain.backends import backend
from stainssl.stain.density import DEFAULTS, Constants
from stainssl.stain.estimate import unmix
from stainssl.stain.profile import LabStats, P, StainProfile, TwoStain

MAX_FLOAT = 2.0  # jitter before may exceed 1 by a little


def normalize(
    images: Tensor,
    source: StainProfile,
    target: StainProfile,
    *,
    constants: Constants = DEFAULTS,
    keep_residual: bool = False,
) -> Tensor:
    """`images` as if stained like `target`.

    Two stains: the map pinv(M_source) · diag(scale_target / scale_source) · M_target in optical
    density, a projection onto the plane of the target's stains. Reinhard: an affine map of each
    channel in LAB. Nothing is estimated here.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1]; float is differentiable.
        source: one profile an image (or one for all).
        target: one profile for all, or one an image; of the source's family.
        constants: those that the profiles were estimated with.
        keep_residual: add back what lies outside the plane of the source's stains (two stains
            only), so that normalizing to the own profile is the identity.

    Returns:
        (B, 3, H, W), the images' dtype and device; finite, never brighter than white. Images
        whose source is not valid are mapped as if stained like the published reference:
        `source.where_valid(...)` gives them a better one.

    Raises:
        ValueError: profiles of two families, another number of profiles than of images, or float
            images beyond [0, 1].
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
    """Raise for float images in 0–255, which would come out all white; a few pixels tell."""
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
    """The images as if only hematoxylin, and only eosin, had been used.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1].
        source: two-stain profiles, one an image (or one for all).
        target: whose stain the result shows; the source's own where None.

    Returns:
        Hematoxylin and eosin, each (B, 3, H, W) of the images' dtype.

    Raises:
        ValueError: profiles that are not of two stains.
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
    """(B, 3, 3) maps of optical density (column vectors) from source to target staining.

    Args:
        source, target: batches of profiles, of equal length or of length 1.
        only: keep this stain alone (0 hematoxylin, 1 eosin).
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
        constants: of the optical density.
        shift: (B, 3), added after the matrix; none where None.

    Returns:
        (B, 3, H, W) of the images' dtype, clipped to what the dtype shows.
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
