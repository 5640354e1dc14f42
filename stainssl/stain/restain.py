"""Stain images anew by families that no encoder is trained with, to test what it is robust to."""

from __future__ import annotations

import torch
from torch import Tensor

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
        raise ValueError(
            f"{len(goal)} profiles for {len(images)} images: give one, or one per image."
        )
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
