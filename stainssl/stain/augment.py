"""Stain augmentations on batches: HED jitter, RandStainNA and stain mixing, a draw an image.

All draw from one generator on the CPU, a few numbers an image, so that a seed gives the same
images on any device and nothing waits for a GPU. Each is one map an image, as normalizing is.
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

# Ruifrok & Johnston 2001, DAB: the third direction that makes H and E a basis of all colors.
DAB_VECTOR = (0.27, 0.57, 0.78)
# A template further out than this is no stain that anybody has seen; a normal draw has such tails.
TEMPLATE_SIGMAS = 3.0
MIN_STD = 1.0  # of a template's deviations, LAB units: below it an image turns flat
MAX_GAIN = 4.0  # beyond it the noise of a flat tile is blown up


class BatchShare(NamedTuple):
    """One process's images of a step, for all of which random numbers are drawn.

    Attributes:
        total: images of the step.
        rows: this process's images among them.
    """

    total: int
    rows: slice


def hed_jitter(
    images: Tensor,
    generator: Generator,
    strength: float = 0.05,
    constants: Constants = DEFAULTS,
    share: BatchShare | None = None,
) -> Tensor:
    """Images whose hematoxylin, eosin and DAB are each scaled and shifted by chance.

    Tellez et al. 2018: with concentrations C in the fixed basis of Ruifrok & Johnston,
    C' = alpha · C + beta, alpha uniform in 1 ± strength, beta uniform in ± strength, drawn for
    each image and stain. Negative concentrations are kept (scikit-image cuts them), so that
    strength 0 is the identity. beta is in natural-log optical density and tints glass as well, as
    in the paper.

    Args:
        images: (B, 3, H, W) RGB, float in [0, 1] or uint8; float is differentiable.
        generator: of a CPU; the only source of chance.
        strength: 0.05 is the paper's light jitter, 0.2 its strong one.
        constants: of the optical density.
        share: which images these are; None: all.

    Returns:
        (B, 3, H, W) of the images' dtype and device, finite, never brighter than white.

    Raises:
        ValueError: a negative strength.
    """
    _refuse_negative("strength", strength)
    count, rows = share or BatchShare(len(images), slice(None))
    alpha, beta = (2 * torch.rand(2, count, 3, generator=generator)[:, rows] - 1) * strength
    basis = torch.tensor([*RUIFROK_MATRIX, DAB_VECTOR])
    basis = (basis / basis.norm(dim=-1, keepdim=True)).T  # columns, as optical densities are
    matrix = basis @ ((1 + alpha)[..., None] * torch.linalg.inv(basis))
    shift = beta @ basis.T
    return map_density(images, matrix.to(images.device), constants, shift=shift.to(images.device))


@dataclass(frozen=True)
class LabSpread:
    """How the color statistics of a pool of tiles vary: what RandStainNA draws templates from.

    Attributes:
        centre: (2, 3) float32, the average over the pool of the tiles' LAB means (row 0) and
            deviations (row 1).
        spread: (2, 3) float32, standard deviations of the same.
    """

    centre: Tensor
    spread: Tensor

    @staticmethod
    def of(profiles: StainProfile) -> LabSpread:
        """The spread of the valid ones among (N) `reinhard` profiles.

        Raises:
            ValueError: profiles of stain vectors, or none that is valid.
        """
        stats = _lab(profiles)
        if not stats.valid.any():
            raise ValueError("No valid reinhard profile to estimate the spread from.")
        numbers = torch.stack([stats.mean, stats.std], 1)[stats.valid].cpu().double()
        return LabSpread(numbers.mean(0).float(), numbers.std(0, correction=0).float())

    def draw(self, count: int, generator: Generator, strength: float = 1.0) -> LabStats:
        """`count` virtual templates, each number normal about its centre, cut at 3 sigma."""
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
    share: BatchShare | None = None,
) -> Tensor:
    """Each image normalized, by Reinhard, to a virtual template drawn for it.

    Shen et al. 2022 (RandStainNA), in LAB with normal templates. Statistics are of the tissue,
    not of the whole image as in the paper, so that the share of glass does not count as stain.

    Args:
        images: (B, 3, H, W) RGB, float in [0, 1] or uint8; float is differentiable.
        generator: of a CPU; the only source of chance.
        source: `reinhard` profiles, one an image (or one for all).
        spread: of the training pool: `LabSpread.of(profiles)`.
        strength: of the spread about its centre; 0 normalizes all to the centre.
        share: which images these are; None: all.

    Returns:
        (B, 3, H, W) of the images' dtype and device, finite, never brighter than white. An image
        without a valid profile is returned unchanged.

    Raises:
        ValueError: profiles of stain vectors, another number of them, or a negative strength.
    """
    _refuse_negative("strength", strength)
    own = _each(_lab(source), images)
    count, rows = share or BatchShare(len(images), slice(None))
    template = spread.draw(count, generator, strength)[rows].to(images.device)
    template = replace(template, std=torch.minimum(template.std, MAX_GAIN * own.std))
    return _where_valid(own, normalize(images, own, template), images)


def stain_mix(
    images: Tensor,
    generator: Generator,
    source: StainProfile,
    partners: StainProfile | None = None,
    strength: float = 0.0,
    share: BatchShare | None = None,
) -> Tensor:
    """Each image with its own concentrations and stain vectors between its own and a partner's.

    Chang et al. 2021 (Stain Mix-Up): M' = lambda · M_own + (1 - lambda) · M_partner, lambda
    uniform in 0–1, the partner a random valid one, both drawn for each image. What lies outside
    the plane of the own stains is dropped, as by `normalize`.

    Args:
        images: (B, 3, H, W) RGB, float in [0, 1] or uint8; float is differentiable.
        generator: of a CPU; the only source of chance.
        source: two-stain profiles, one an image (or one for all).
        partners: two-stain profiles to draw partners from; the batch's own where None.
        strength: concentrations of each stain are scaled by a factor uniform in 1 ± strength
            (0.2 in the paper).
        share: which images these are; None: all.

    Returns:
        (B, 3, H, W) of the images' dtype and device, finite, never brighter than white. An image
        without a valid profile is returned unchanged.

    Raises:
        ValueError: profiles of LAB statistics, another number of them, or a negative strength.
    """
    _refuse_negative("strength", strength)
    own = _each(_stains(source), images)
    share = share or BatchShare(len(own), slice(None))
    partner = _drawn(
        own if partners is None else _stains(partners).to(images.device), own, generator, share
    )
    mixed = torch.rand(share.total, 1, 1, generator=generator)[share.rows].to(images.device)
    factor = 1 + strength * (2 * torch.rand(share.total, 2, generator=generator)[share.rows] - 1)
    matrix = mixed * own.matrix + (1 - mixed) * partner.matrix
    matrix = matrix / matrix.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    goal = replace(own, matrix=matrix, scale=own.scale * factor.to(images.device))
    return _where_valid(own, normalize(images, own, goal), images)


def _drawn(partners: TwoStain, own: TwoStain, generator: Generator, share: BatchShare) -> TwoStain:
    """A random valid partner for each of `own`; itself where no partner is valid."""
    if not len(partners):
        return own
    score = torch.rand(share.total, len(partners), generator=generator)[share.rows]
    # The best score wins: no index leaves the device, so nothing waits for it.
    best = (score.to(own.valid.device) + partners.valid.float()).argmax(1)
    return partners[best].where_valid(own)


def _each(profile: P, images: Tensor) -> P:
    """`profile` on the images' device, repeated for each where it is one for all."""
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
