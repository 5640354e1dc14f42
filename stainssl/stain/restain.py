"""Stain images anew by families that no encoder is trained with, to test what it is robust to."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from stainssl.stain.density import DEFAULTS, Constants, optical_density
from stainssl.stain.estimate import estimate
from stainssl.stain.lab import lab_to_rgb, rgb_to_lab
from stainssl.stain.profile import LabStats, StainProfile
from stainssl.stain.torch_backend import in_chunks

# Beyond these a gain is noise blown up: flat tiles have deviations near zero.
GAIN_LIMITS = (0.25, 4.0)


def reinhard_to(images: Tensor, profile: StainProfile, constants: Constants = DEFAULTS) -> Tensor:
    """The tissue of `images` with the LAB mean and deviation of `profile`; glass stays as it is.

    Reinhard et al. 2001, its statistics and its effect on tissue alone. Between glass and tissue
    the effect fades in with the optical density, so that no edge appears.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1].
        profile: of method `reinhard`: one for all, or one an image.
        constants: `beta` tells tissue from glass.

    Returns:
        (B, 3, H, W) of the images' dtype. An image without enough tissue is returned unchanged.

    Raises:
        ValueError: a profile of stain vectors, or another number of profiles than of images.
    """
    if not isinstance(profile, LabStats):
        raise ValueError(f"reinhard_to needs a reinhard profile; found {profile.method}.")
    own, goal = estimate(images, "reinhard", constants), profile.batched().to(images.device)
    if len(goal) not in (1, len(images)):
        raise ValueError(f"{len(goal)} profiles for {len(images)} images: give one, or one each.")
    assert isinstance(own, LabStats)
    assert isinstance(goal, LabStats)
    gain = (goal.std / own.std.clamp_min(1e-3)).clamp(*GAIN_LIMITS)
    gain = torch.where(own.valid[:, None], gain, 1.0)
    shift = torch.where(own.valid[:, None], goal.mean - gain * own.mean, 0.0)

    def mapped(grey: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        tissue = (optical_density(grey, constants).mean(1, keepdim=True) / constants.beta).clamp(
            0, 1
        )
        lab = rgb_to_lab(grey / 255)
        moved = lab * gain[..., None] + shift[..., None]
        return lab_to_rgb(lab + tissue * (moved - lab)) * 255

    return in_chunks(images, mapped, gain, shift)


def od_shift(
    images: Tensor, generator: Generator, strength: float = 0.2, constants: Constants = DEFAULTS
) -> Tensor:
    """Images with gain and gamma drawn for each channel's optical density.

    OD' = gain · OD^gamma with ln(gain) and ln(gamma) uniform in ± strength and ± strength / 2,
    drawn for each image and channel: staining time, lamp and sensor, not a mix of two stains.
    White stays white.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1].
        generator: of a CPU; the only source of chance.
        strength: 0 changes nothing; 0.2 is a channel's OD times 0.82 to 1.22.

    Returns:
        (B, 3, H, W) of the images' dtype.

    Raises:
        ValueError: a negative strength.
    """
    if strength < 0:
        raise ValueError(f"strength is {strength}: give 0 or more.")
    drawn = (2 * torch.rand(2, len(images), 3, 1, generator=generator) - 1) * strength
    gain, gamma = drawn[0].exp().to(images.device), (drawn[1] / 2).exp().to(images.device)

    def mapped(grey: Tensor, gain: Tensor, gamma: Tensor) -> Tensor:
        density = optical_density(grey, constants).clamp_min(1e-6)
        return constants.io * constants.log_base ** -(gain * density**gamma) - constants.offset

    return in_chunks(images, mapped, gain, gamma)
