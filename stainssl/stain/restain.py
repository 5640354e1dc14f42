"""Restaining for robustness tests, by a method that encoders are not trained with."""

from __future__ import annotations

import torch
from torch import Tensor

from stainssl.stain.density import DEFAULTS, Constants, optical_density
from stainssl.stain.estimate import estimate
from stainssl.stain.lab import lab_to_rgb, rgb_to_lab
from stainssl.stain.profile import LabStats, StainProfile
from stainssl.stain.torch_backend import in_chunks

# Flat tiles have standard deviations near zero: a larger gain would only amplify noise.
GAIN_LIMITS = (0.25, 4.0)


def restain_reinhard(
    images: Tensor, profile: StainProfile, constants: Constants = DEFAULTS
) -> Tensor:
    """Match the LAB mean and standard deviation of the tissue to `profile`; glass is unchanged.

    Reinhard et al. 2001, with statistics of the tissue only, and applied to the tissue only. The
    effect increases with the optical density between glass and tissue, so that no edge appears.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1].
        profile: `reinhard` profiles, one for all or one per image.
        constants: constants of the optical density; `beta` separates tissue from glass.

    Returns:
        (B, 3, H, W) of the images' dtype. An image without enough tissue is returned unchanged,
        up to rounding.

    Raises:
        ValueError: `profile` is not of method `reinhard`, or the number of profiles is not that
            of the images.
    """
    if not isinstance(profile, LabStats):
        raise ValueError(f"restain_reinhard needs a reinhard profile; found {profile.method}.")
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
