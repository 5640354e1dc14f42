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

SPARSE_PIXELS = 1 << 13  # that Vahadane's vectors are learnt from
SPARSE_ROUNDS = 20  # from Macenko's vectors; 100 moved the median error by less than 0.1 degrees


@dataclass(frozen=True)
class EstimationLimits:
    """What a tile must have for its profile to be valid.

    Attributes:
        min_tissue: share of pixels that are tissue.
        max_clipped: share of tissue pixels with a channel at 0: black, saturated, thick ink.
        min_angle_deg, max_angle_deg: between hematoxylin and eosin. Below: one stain and noise
            (100 synthetic tiles of one stain reached 6.8 degrees at most).
        min_plane_to_noise: second to third eigenvalue of the OD covariance. At 1 the spread has
            no plane: random noise, a plane drawn by chance. Not a test for two stains: the noise
            of JPEG has a plane too.
        min_plane: second eigenvalue, squared natural-log OD units. Below it the spread is a line
            and the grey levels' rounding: two flat colors, no mixture.
        min_component: of both vectors; real stains absorb, so none is below 0 but for noise.
        min_green: of both vectors; H&E absorb green most, green and blue ink do not.
        min_scale: strength of each stain, natural-log OD units.
        min_variance: of the tissue's OD along its main direction (Ruifrok alone: its vectors are
            given, so nothing else tells a constant tile).
        min_lab_std: deviation of lightness over the tissue; a constant tile has none.
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
    """One stain profile an image.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1]; any device. B may be 0.
        method: `macenko`, `vahadane`, `ruifrok` or `reinhard`.
        constants: background, thresholds and percentiles.
        tissue: (B, H, W) bool, the pixels to look at; where None, those whose optical density is
            at least `constants.beta` in every channel.

    Returns:
        A batch of B profiles on the images' device. Always finite: where an image has not enough
        tissue, not two stains, or ink instead, `valid` is False and the published reference
        stands in.

    Raises:
        ValueError: unknown method, images of another shape or dtype, or a mask that does not fit.
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
    """The plane in which the optical density of the tissue varies most.

    Returns:
        (B, 3, 2) float32 basis, first the vector of most spread, and (B, 3) variances along the
        three axes, ascending, in squared natural-log units. Vectors are 0 where there is no plane.
    """
    values, vectors = principal_axes(moments.covariance)
    basis = vectors[..., [2, 1]]
    basis = torch.where(basis.sum(1, keepdim=True) < 0, -basis, basis)
    return basis.float(), (values * math.log(constants.log_base) ** 2).float()


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors (columns) of symmetric (B, 3, 3) float64.

    In closed form (Smith 1961), as `torch.linalg.eigh` makes the host wait for a GPU. Vectors of
    an eigenvalue that is not single are 0.
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
    """(B, 3) unit vector across the rows of (B, 3, 3): the best of three cross products."""
    crossed = torch.linalg.cross(singular, singular.roll(1, 1))
    best = crossed.norm(dim=-1).argmax(1)[:, None, None].expand(-1, 1, 3)
    vector = crossed.gather(1, best)[:, 0]
    return vector / vector.norm(dim=-1, keepdim=True).clamp_min(1e-300)


def unmix(matrix: Tensor) -> Tensor:
    """(B, 2, 3) map from optical density to concentrations: least squares for (B, 2, 3) stains."""
    gram = matrix @ matrix.mT
    a, b, d = gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]
    determinant = (a * d - b * b).clamp_min(1e-9)
    inverse = torch.stack([d, -b, -b, a], -1).reshape(-1, 2, 2) / determinant[:, None, None]
    return inverse @ matrix


def _extreme_vectors(sample: Sample, basis: Tensor) -> Tensor:
    """(B, 2, 3) unit vectors at the extreme angles of the plane, redder first."""
    alpha = sample.constants.alpha / 100
    extremes = sample.angle_quantiles(basis, (alpha, 1 - alpha))
    circle = torch.stack([extremes.cos(), extremes.sin()], -1)
    return _redder_first(circle @ basis.mT).nan_to_num()


def _redder_first(vectors: Tensor) -> Tensor:
    """Hematoxylin absorbs more red than eosin does."""
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
    """The profile of known vectors; valid where `believed` and both stains are strong."""
    constants = sample.constants
    scale = sample.concentration_quantile(unmix(matrix), constants.scale_percentile / 100)
    strong = (scale * math.log(constants.log_base) >= LIMITS.min_scale).all(-1)
    return TwoStain(method, believed & strong, matrix, scale)


def _macenko(sample: Sample) -> TwoStain:
    """Macenko et al. 2009, after Veta's published implementation.

    The plane of the two largest eigenvectors of the tissue's OD covariance; stains are the
    extreme angles in it; scales are percentiles of least-squares concentrations over all pixels.
    """
    moments = sample.moments()
    basis, eigenvalues = plane(moments, sample.constants)
    matrix = _extreme_vectors(sample, basis)
    believed = _has_tissue(moments) & _is_h_and_e(matrix, eigenvalues)
    return _two_stain("macenko", sample, matrix, believed)


def _vahadane(sample: Sample) -> TwoStain:
    """Vahadane et al. 2016: sparse non-negative factorisation of the tissue's optical density.

    Begun at Macenko's vectors and not at random, so that an image has one answer. A tile is
    believed where Macenko believes it too: a factorisation finds two vectors in anything.
    Concentrations are least squares, as in Macenko, so that both make the same map.
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
    """Fixed vectors of Ruifrok & Johnston 2001; scales as in Macenko."""
    moments = sample.moments()
    matrix = torch.tensor(RUIFROK_MATRIX, device=moments.tissue.device)
    matrix = (matrix / matrix.norm(dim=-1, keepdim=True)).expand(len(moments.tissue), 2, 3)
    varied = plane(moments, sample.constants)[1][:, 2] > LIMITS.min_variance
    return _two_stain("ruifrok", sample, matrix, _has_tissue(moments) & varied)


def _reinhard(sample: Sample) -> LabStats:
    """Mean and deviation of L, a, b over tissue, after Reinhard et al. 2001 (in CIE LAB)."""
    moments = sample.lab_moments()
    varied = (moments.std[:, 0] >= LIMITS.min_lab_std) & (moments.std > 0).all(-1)
    return LabStats("reinhard", _has_tissue(moments) & varied, moments.mean, moments.std)


METHODS: dict[str, Callable[[Sample], StainProfile]] = {
    "macenko": _macenko,
    "vahadane": _vahadane,
    "ruifrok": _ruifrok,
    "reinhard": _reinhard,
}
