"""Estimate stain profiles from batches of images: Macenko, Vahadane, Ruifrok, Reinhard."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stainssl.stain.backends import samples
from stainssl.stain.density import DEFAULTS, Constants, check_images
from stainssl.stain.profile import LabStats, StainProfile, TwoStain, filled
from stainssl.stain.torch_backend import LabMoments, Moments

if TYPE_CHECKING:
    from stainssl.stain.backends import Sample

# Ruifrok & Johnston 2001, hematoxylin and eosin, rows normalized.
RUIFROK_MATRIX = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))

SPARSE_PIXELS = 1 << 13  # pixels from which Vahadane's vectors are estimated
SPARSE_ROUNDS = 20  # after Macenko's vectors; 100 changed the median error by less than 0.1 degrees


@dataclass(frozen=True)
class EstimationLimits:
    """Criteria for a valid stain profile.

    Attributes:
        min_tissue: least share of pixels that are tissue.
        max_clipped: largest share of tissue pixels with a channel at 0 (black, saturated, thick
            ink).
        min_angle_deg, max_angle_deg: angle between hematoxylin and eosin. A smaller angle is one
            stain and noise (100 synthetic tiles of one stain reached 6.8 degrees at most).
        min_plane_to_noise: least ratio of the second to the third eigenvalue of the OD covariance.
            A ratio of 1 is isotropic noise, in which no plane is defined. This is no test for two
            stains: JPEG noise has a plane, too.
        min_plane: least second eigenvalue, in squared natural-log OD units. Below it the pixels
            lie on a line, up to rounding: two flat colors, no mixture of stains.
        min_component: least component of both vectors; stains absorb, so that components are
            negative by noise only.
        min_green: least green component of both vectors; H&E absorbs green most, green and blue
            ink do not.
        min_scale: least scale of each stain, in natural-log OD units.
        min_variance: least OD variance of the tissue along its main axis, in squared natural-log
            units (Ruifrok only: with fixed vectors, no other criterion detects a constant tile).
        min_lab_std: least standard deviation of L over the tissue (Reinhard only); a constant
            tile has 0.
    """

    min_tissue: float = 0.05
    max_clipped: float = 0.25
    min_angle_deg: float = 8.0
    max_angle_deg: float = 70.0
    min_plane_to_noise: float = 1.15
    min_plane: float = 1e-5
    min_component: float = -0.1
    min_green: float = 0.4
    min_scale: float = 0.1
    min_lab_std: float = 1.0
    min_variance: float = 1e-4


LIMITS = EstimationLimits()


def estimate(
    images: Tensor,
    method: str = "macenko",
    constants: Constants = DEFAULTS,
    tissue: Tensor | None = None,
) -> StainProfile:
    """Estimate the stain profile of each image.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1]; any device. B may be 0.
        method: `macenko`, `vahadane`, `ruifrok` or `reinhard`.
        constants: background, thresholds and percentiles.
        tissue: (B, H, W) bool tissue mask. By default, pixels whose optical density is at least
            `constants.beta` in every channel are tissue.

    Returns:
        A batch of B profiles on the images' device, always finite. If an image has too little
        tissue, or not two stains (one stain, ink), `valid` is False and the profile is the
        published reference.

    Raises:
        ValueError: unknown method, images of another shape or dtype, or a mask of another shape.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown stain method {method!r}; known: {', '.join(METHODS)}.")
    check_images(images)
    if tissue is not None and tissue.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"tissue must be (B, H, W) to match images {tuple(images.shape)}; "
            f"found {tuple(tissue.shape)}."
        )
    with torch.no_grad():
        parts = [METHODS[method](sample) for sample in samples(images, constants, tissue)]
        return filled(StainProfile.cat(parts))


def plane(moments: Moments, constants: Constants) -> tuple[Tensor, Tensor]:
    """Compute the plane in which the optical density of the tissue varies most.

    Returns:
        (B, 3, 2) float32 orthonormal basis of the plane, the axis of largest variance first, and
        (B, 3) float32 variances along the three principal axes, ascending, in squared natural-log
        OD units. An axis that is not unique is 0.
    """
    values, vectors = principal_axes(moments.covariance)
    basis = vectors[..., [2, 1]]
    basis = torch.where(basis.sum(1, keepdim=True) < 0, -basis, basis)
    return basis.float(), (values * math.log(constants.log_base) ** 2).float()


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (B, 3), ascending, and eigenvectors (columns) of symmetric (B, 3, 3) float64.

    In closed form (Smith 1961), because `torch.linalg.eigh` makes the host wait for a GPU.
    Eigenvectors of a repeated eigenvalue are 0.
    """
    eye = torch.eye(3, dtype=covariance.dtype, device=covariance.device)
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    centred = covariance - mean[:, None, None] * eye
    radius = (centred.square().sum((-1, -2)) / 6).sqrt()
    a, b, c = (centred / radius.clamp_min(1e-30)[:, None, None]).unbind(1)
    turn = ((a * torch.linalg.cross(b, c)).sum(-1) / 2).clamp(-1, 1).acos() / 3
    most = mean + 2 * radius * turn.cos()
    least = mean + 2 * radius * (turn + 2 * math.pi / 3).cos()
    first, last = (_null_vector(covariance - v[:, None, None] * eye) for v in (least, most))
    vectors = torch.stack([first, torch.linalg.cross(last, first), last], -1)
    return torch.stack([least, 3 * mean - most - least, most], -1), vectors


def _null_vector(singular: Tensor) -> Tensor:
    """(B, 3) unit vector orthogonal to the rows of (B, 3, 3): the longest cross product of two."""
    crossed = torch.linalg.cross(singular, singular.roll(1, 1))
    best = crossed.norm(dim=-1).argmax(1)[:, None, None].expand(-1, 1, 3)
    vector = crossed.gather(1, best)[:, 0]
    return vector / vector.norm(dim=-1, keepdim=True).clamp_min(1e-300)


def unmix(matrix: Tensor) -> Tensor:
    """Least-squares map (B, 2, 3) from optical density to concentrations of (B, 2, 3) stains."""
    gram = matrix @ matrix.mT
    a, b, d = gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]
    determinant = (a * d - b * b).clamp_min(1e-9)
    inverse = torch.stack([d, -b, -b, a], -1).reshape(-1, 2, 2) / determinant[:, None, None]
    return inverse @ matrix


def _extreme_vectors(sample: Sample, basis: Tensor) -> Tensor:
    """(B, 2, 3) unit vectors at the extreme angles in the plane, hematoxylin first."""
    alpha = sample.constants.alpha / 100
    extremes = sample.angle_quantiles(basis, (alpha, 1 - alpha))
    circle = torch.stack([extremes.cos(), extremes.sin()], -1)
    return _redder_first(circle @ basis.mT).nan_to_num()


def _redder_first(vectors: Tensor) -> Tensor:
    """Order (B, 2, 3) stain vectors: hematoxylin, which absorbs more red than eosin, first."""
    swap = vectors[:, 0, 0] < vectors[:, 1, 0]
    return torch.where(swap[:, None, None], vectors.flip(1), vectors)


def _has_tissue(moments: Moments | LabMoments) -> Tensor:
    enough = moments.tissue >= LIMITS.min_tissue
    return enough & (moments.clipped <= LIMITS.max_clipped * moments.tissue)


def _is_h_and_e(matrix: Tensor, eigenvalues: Tensor) -> Tensor:
    cosine = (matrix[:, 0] * matrix[:, 1]).sum(-1).clamp(-1, 1)
    angle = torch.rad2deg(cosine.acos())
    two_stains = (
        (angle >= LIMITS.min_angle_deg)
        & (angle <= LIMITS.max_angle_deg)
        & (eigenvalues[:, 1] >= LIMITS.min_plane_to_noise * eigenvalues[:, 0])
        & (eigenvalues[:, 1] >= LIMITS.min_plane)
    )
    colors = (matrix >= LIMITS.min_component).all(-1).all(-1) & (
        matrix[:, :, 1] >= LIMITS.min_green
    ).all(-1)
    return two_stains & colors


def _two_stain(method: str, sample: Sample, matrix: Tensor, believed: Tensor) -> TwoStain:
    """Profile of given stain vectors; valid if `believed` and both scales are large enough."""
    constants = sample.constants
    scale = sample.concentration_quantile(unmix(matrix), constants.scale_percentile / 100)
    strong = (scale * math.log(constants.log_base) >= LIMITS.min_scale).all(-1)
    return TwoStain(method, believed & strong, matrix, scale)


def _macenko(sample: Sample) -> TwoStain:
    """Macenko et al. 2009, after Veta's published implementation.

    The stain vectors lie at the extreme angles in the plane of the two largest eigenvectors of
    the tissue's OD covariance. Scales are percentiles of least-squares concentrations over all
    pixels.
    """
    moments = sample.moments()
    basis, eigenvalues = plane(moments, sample.constants)
    matrix = _extreme_vectors(sample, basis)
    believed = _has_tissue(moments) & _is_h_and_e(matrix, eigenvalues)
    return _two_stain("macenko", sample, matrix, believed)


def _vahadane(sample: Sample) -> TwoStain:
    """Vahadane et al. 2016: sparse non-negative factorisation of the tissue's optical density.

    It starts from Macenko's vectors instead of random ones, so that the result is deterministic.
    A profile is valid only if Macenko's is, since a factorisation finds two vectors in any tile.
    Concentrations are least squares, as for Macenko, so that both methods normalize by the same
    kind of map.
    """
    moments = sample.moments()
    basis, eigenvalues = plane(moments, sample.constants)
    start = _extreme_vectors(sample, basis)
    believed = _has_tissue(moments) & _is_h_and_e(start, eigenvalues)
    start = start.clamp_min(0) / start.clamp_min(0).norm(dim=-1, keepdim=True).clamp_min(1e-6)
    penalty = sample.constants.penalty / math.log(sample.constants.log_base)
    found = sample.thinned(SPARSE_PIXELS).sparse_vectors(start, penalty, SPARSE_ROUNDS)
    matrix = _redder_first(found.nan_to_num())
    return _two_stain("vahadane", sample, matrix, believed & _is_h_and_e(matrix, eigenvalues))


def _ruifrok(sample: Sample) -> TwoStain:
    """Fixed vectors of Ruifrok & Johnston 2001; scales as for Macenko."""
    moments = sample.moments()
    matrix = torch.tensor(RUIFROK_MATRIX, device=moments.tissue.device)
    matrix = (matrix / matrix.norm(dim=-1, keepdim=True)).expand(len(moments.tissue), 2, 3)
    varied = plane(moments, sample.constants)[1][:, 2] > LIMITS.min_variance
    return _two_stain("ruifrok", sample, matrix, _has_tissue(moments) & varied)


def _reinhard(sample: Sample) -> LabStats:
    """Mean and standard deviation of CIE L, a, b over the tissue, after Reinhard et al. 2001."""
    moments = sample.lab_moments()
    varied = (moments.std[:, 0] >= LIMITS.min_lab_std) & (moments.std > 0).all(-1)
    return LabStats("reinhard", _has_tissue(moments) & varied, moments.mean, moments.std)


METHODS: dict[str, Callable[[Sample], StainProfile]] = {
    "macenko": _macenko,
    "vahadane": _vahadane,
    "ruifrok": _ruifrok,
    "reinhard": _reinhard,
}
