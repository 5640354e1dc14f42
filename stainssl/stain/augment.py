"""Stain augmentations for batches of tiles: HED jitter, RandStainNA and stain mixing.

Parameters are drawn independently for each image, a few numbers per image, from a CPU generator:
a seed gives the same images on any device, and nothing waits for a GPU. As in stain
normalization, each image is transformed by a single map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from stainssl.stain.density import DEFAULTS, Constants
from stainssl.stain.estimate import RUIFROK_MATRIX
from stainssl.stain.normalize import map_density, normalize
from stainssl.stain.profile import LabStats, P, StainProfile, TwoStain

# Ruifrok & Johnston 2001, DAB: the third vector that completes H and E to a basis of RGB.
DAB_VECTOR = (0.27, 0.57, 0.78)
# Normal draws are clamped to this many standard deviations: templates further out are unrealistic.
TEMPLATE_SIGMAS = 3.0
MIN_STD = 1.0  # least standard deviation of a template, LAB units: below it an image turns flat
MAX_GAIN = 4.0  # a larger gain would amplify the noise of a flat tile


class StepRows(NamedTuple):
    """The images of one process within a step of distributed training.

    Every process draws the random numbers of the whole step and uses its own rows.

    Attributes:
        total: number of images of the step, over all processes.
        rows: slice of this process's images within the step.
    """

    total: int
    rows: slice


def hed_jitter(
    images: Tensor,
    generator: Generator,
    strength: float = 0.05,
    constants: Constants = DEFAULTS,
    step_rows: StepRows | None = None,
) -> Tensor:
    """Randomly scale and shift the hematoxylin, eosin and DAB concentrations of each image.

    Tellez et al. 2018: with concentrations C in the fixed basis of Ruifrok & Johnston,
    C' = alpha · C + beta, alpha uniform in 1 ± strength, beta uniform in ± strength, drawn for
    each image and stain. Negative concentrations are kept (scikit-image clips them), so that
    strength 0 is the identity. beta is in natural-log optical density and tints glass as well, as
    in the paper.

    Args:
        images: (B, 3, H, W) RGB, float in [0, 1] or uint8; float is differentiable.
        generator: CPU generator, the only source of randomness.
        strength: 0.05 is the paper's light jitter, 0.2 its strong one.
        constants: constants of the optical density.
        step_rows: position of the images in the step; None if they are the whole step.

    Returns:
        (B, 3, H, W), dtype and device of `images`; finite, never brighter than white.

    Raises:
        ValueError: `strength` is negative.
    """
    _refuse_negative("strength", strength)
    count, rows = step_rows or StepRows(len(images), slice(None))
    alpha, beta = (2 * torch.rand(2, count, 3, generator=generator)[:, rows] - 1) * strength
    basis = torch.tensor([*RUIFROK_MATRIX, DAB_VECTOR])
    basis = (basis / basis.norm(dim=-1, keepdim=True)).T  # columns, as optical densities are
    matrix = basis @ ((1 + alpha)[..., None] * torch.linalg.inv(basis))
    shift = beta @ basis.T
    return map_density(images, matrix.to(images.device), constants, shift=shift.to(images.device))


@dataclass(frozen=True)
class LabSpread:
    """Distribution of the LAB statistics of a pool of tiles, from which RandStainNA draws.

    Attributes:
        centre: (2, 3) float32, averages over the pool of the tiles' LAB means (row 0) and LAB
            standard deviations (row 1).
        spread: (2, 3) float32, standard deviations of the same over the pool.
    """

    centre: Tensor
    spread: Tensor

    @staticmethod
    def of(profiles: StainProfile) -> LabSpread:
        """Estimate the distribution from the valid ones of N `reinhard` profiles.

        Raises:
            ValueError: the profiles are not `reinhard` profiles, or none is valid.
        """
        stats = _lab(profiles)
        if not stats.valid.any():
            raise ValueError("No valid reinhard profile to estimate the spread from.")
        numbers = torch.stack([stats.mean, stats.std], 1)[stats.valid].cpu().double()
        return LabSpread(numbers.mean(0).float(), numbers.std(0, correction=0).float())

    def draw(self, count: int, generator: Generator, strength: float = 1.0) -> LabStats:
        """Draw `count` virtual templates from normal distributions, clamped at 3 sigma."""
        drawn = torch.randn(count, 2, 3, generator=generator).clamp(
            -TEMPLATE_SIGMAS, TEMPLATE_SIGMAS
        )
        mean, std = (self.centre + strength * self.spread * drawn).unbind(1)
        return LabStats(
            "reinhard", torch.ones(count, dtype=torch.bool), mean, std.clamp_min(MIN_STD)
        )


def rand_stain_na(
    images: Tensor,
    generator: Generator,
    source: StainProfile,
    spread: LabSpread,
    strength: float = 1.0,
    step_rows: StepRows | None = None,
) -> Tensor:
    """Normalize each image, by Reinhard's method, to a virtual template drawn for it.

    RandStainNA (Shen et al. 2022) in LAB, with normally distributed templates. Statistics are
    computed over the tissue, not over the whole image as in the paper, so that they do not depend
    on the share of glass.

    Args:
        images: (B, 3, H, W) RGB, float in [0, 1] or uint8; float is differentiable.
        generator: CPU generator, the only source of randomness.
        source: `reinhard` profiles of the images, one per image (or one for all).
        spread: distribution of the training pool, `LabSpread.of(profiles)`.
        strength: factor of the spread; 0 normalizes every image to the centre.
        step_rows: position of the images in the step; None if they are the whole step.

    Returns:
        (B, 3, H, W), dtype and device of `images`; finite, never brighter than white. An image
        without a valid profile is returned unchanged.

    Raises:
        ValueError: `source` has another method or another number of profiles, or `strength` is
            negative.
    """
    _refuse_negative("strength", strength)
    own = _each(_lab(source), images)
    count, rows = step_rows or StepRows(len(images), slice(None))
    template = spread.draw(count, generator, strength)[rows].to(images.device)
    template = replace(template, std=torch.minimum(template.std, MAX_GAIN * own.std))
    return _where_valid(own, normalize(images, own, template), images)


def stain_mix(
    images: Tensor,
    generator: Generator,
    source: StainProfile,
    partners: StainProfile | None = None,
    strength: float = 0.0,
    step_rows: StepRows | None = None,
) -> Tensor:
    """Mix the stain vectors of each image with those of a random partner.

    Stain Mix-Up (Chang et al. 2021): M' = lambda · M_own + (1 - lambda) · M_partner, with lambda
    uniform in 0–1 and a random valid partner, both drawn for each image. Concentrations are the
    image's own. The residual outside the plane of its stains is dropped, as by `normalize`.

    Args:
        images: (B, 3, H, W) RGB, float in [0, 1] or uint8; float is differentiable.
        generator: CPU generator, the only source of randomness.
        source: two-stain profiles of the images, one per image (or one for all).
        partners: two-stain profiles to draw partners from; None draws from `source`.
        strength: concentrations of each stain are scaled by a factor uniform in 1 ± strength
            (0.2 in the paper).
        step_rows: position of the images in the step; None if they are the whole step.

    Returns:
        (B, 3, H, W), dtype and device of `images`; finite, never brighter than white. An image
        without a valid profile is returned unchanged.

    Raises:
        ValueError: `source` or `partners` are not two-stain profiles, `source` has another number
            of profiles, or `strength` is negative.
    """
    _refuse_negative("strength", strength)
    own = _each(_stains(source), images)
    step_rows = step_rows or StepRows(len(own), slice(None))
    partner = _drawn(
        own if partners is None else _stains(partners).to(images.device), own, generator, step_rows
    )
    mixed = torch.rand(step_rows.total, 1, 1, generator=generator)[step_rows.rows].to(images.device)
    factor = 1 + strength * (
        2 * torch.rand(step_rows.total, 2, generator=generator)[step_rows.rows] - 1
    )
    matrix = mixed * own.matrix + (1 - mixed) * partner.matrix
    matrix = matrix / matrix.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    goal = replace(own, matrix=matrix, scale=own.scale * factor.to(images.device))
    return _where_valid(own, normalize(images, own, goal), images)


def _drawn(
    partners: TwoStain, own: TwoStain, generator: Generator, step_rows: StepRows
) -> TwoStain:
    """Draw a valid partner for each profile of `own`: itself if no partner is valid."""
    if not len(partners):
        return own
    score = torch.rand(step_rows.total, len(partners), generator=generator)[step_rows.rows]
    # argmax of random scores, invalid partners one lower: no index is copied to the host.
    best = (score.to(own.valid.device) + partners.valid.float()).argmax(1)
    return partners[best].where_valid(own)


def _each(profile: P, images: Tensor) -> P:
    """Move `profile` to the images' device, and repeat a single profile for every image."""
    profile = profile.to(images.device)
    return profile[[0] * len(images)] if len(profile) == 1 else profile


def _where_valid(source: StainProfile, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(source.valid[:, None, None, None], changed, images)


def _lab(profiles: StainProfile) -> LabStats:
    if not isinstance(profiles, LabStats):
        raise ValueError(f"RandStainNA needs reinhard profiles; found {profiles.method}.")
    return profiles.batched()


def _stains(profiles: StainProfile) -> TwoStain:
    if not isinstance(profiles, TwoStain):
        raise ValueError(f"Stain mixing needs two-stain profiles; found {profiles.method}.")
    return profiles.batched()


def _refuse_negative(name: str, value: float) -> None:
    if value < 0:
        raise ValueError(f"{name} is {value}: give 0 or more.")
