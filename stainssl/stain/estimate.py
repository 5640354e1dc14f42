"""Estimate stain profiles from batches of images: Macenko, Ruifrok, Reinhard."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stainssl.stain.lab import rgb_to_lab
from stainssl.stain.profile import LabStats, StainProfile, TwoStain, filled

# Ruifrok & Johnston 2001, hematoxylin and eosin, rows normalised.
RUIFROK_MATRIX = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))

BINS = 4096  # of the histograms that percentiles are read from
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
    """

    io: float = 256.0
    offset: float = 1.0
    beta: float = 0.15
    alpha: float = 1.0
    scale_percentile: float = 99.0
    log_base: float = math.e
    max_pixels: int | None = 1 << 16


DEFAULTS = Constants()


@dataclass(frozen=True)
class Limits:
    """What a tile must have for its profile to be believed.

    Attributes:
        min_tissue: share of pixels that are tissue.
        max_clipped: share of tissue pixels with a channel at 0: black, saturated, thick ink.
        min_angle_deg, max_angle_deg: between hematoxylin and eosin. Below: one stain and noise
            (100 synthetic tiles of one stain reached 6.8 degrees at most).
        min_plane_to_noise: second to third eigenvalue of the OD covariance. At 1 the spread has
            no plane: random noise, a plane drawn by chance. Not a test for two stains: the noise
            of JPEG has a plane too.
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
    min_component: float = -0.1
    min_green: float = 0.4
    min_scale: float = 0.1
    min_lab_std: float = 1.0
    min_variance: float = 1e-4


LIMITS = Limits()


def grey_levels(images: Tensor) -> Tensor:
    """(B, 3, P) float32 grey levels 0–255 of (B, 3, H, W) uint8, or float in [0, 1].

    Raises:
        ValueError: another shape or dtype.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W); found {tuple(images.shape)}.")
    if images.dtype == torch.uint8:
        return images.flatten(2).float()
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8, or float in [0, 1]; found {images.dtype}.")
    return images.flatten(2).float().nan_to_num().clamp(0, 1) * 255


def optical_density(grey: Tensor, constants: Constants = DEFAULTS) -> Tensor:
    """Optical density of grey levels 0–255, in units of `constants.log_base`; shape kept."""
    unit = math.log(constants.log_base)
    return (math.log(constants.io) - (grey + constants.offset).log()) / unit


def estimate(
    images: Tensor, method: str = "macenko", constants: Constants = DEFAULTS
) -> StainProfile:
    """One stain profile an image.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1]; any device. B may be 0.
        method: `macenko`, `ruifrok` or `reinhard`.
        constants: background, thresholds and percentiles.

    Returns:
        A batch of B profiles on the images' device. Always finite: where an image has not enough
        tissue, not two stains, or ink instead, `valid` is False and the published reference
        stands in.

    Raises:
        ValueError: unknown method, or images of another shape or dtype.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown stain method {method!r}; known: {', '.join(METHODS)}.")
    grey_levels(images[:0])
    step = chunk_images(images, constants.max_pixels)
    with torch.no_grad():
        parts = [
            METHODS[method](grey_levels(_subsample(chunk, constants.max_pixels)), constants)
            for chunk in images.split(step)
        ]
        return filled(StainProfile.cat(parts))


def chunk_images(images: Tensor, max_pixels: int | None = None) -> int:
    """How many images to work on at once: few enough that working arrays stay in the cache."""
    pixels = images.shape[-2] * images.shape[-1]
    pixels = min(pixels, max_pixels) if max_pixels else pixels
    return len(images) or 1 if images.is_cuda else max(1, CHUNK_VALUES // max(1, 3 * pixels))


def _subsample(images: Tensor, max_pixels: int | None) -> Tensor:
    pixels = images.shape[-2] * images.shape[-1]
    if max_pixels is None or pixels <= max_pixels:
        return images
    # A stride that shares a factor with the width would take whole columns only.
    stride = -(-pixels // max_pixels)
    while math.gcd(stride, images.shape[-1]) > 1:
        stride += 1
    return images.flatten(2)[..., ::stride].unsqueeze(-2)


def tissue_weight(od: Tensor, beta: float) -> Tensor:
    """(B, P) float32, 1 where every channel of the (B, 3, P) optical density is at least `beta`."""
    return (od.amin(1) >= beta).to(od.dtype)


def masked_quantile(values: Tensor, weight: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Quantiles of each row's weighted values, read off a histogram of 4096 bins.

    Linear inside a bin, so the error is below one bin: 1/4096 of the row's range. Counts are
    integers, so the result depends neither on the batch nor on the order of pixels.

    Args:
        values: (B, P) float32, finite.
        weight: (B, P) float32, 0 or 1.
        shares: quantiles, 0–1.

    Returns:
        (B, len(shares)) float32; the row's largest value where no weight is 1.
    """
    inside = weight > 0
    low = torch.where(inside, values, torch.inf).amin(-1, keepdim=True)
    high = torch.where(inside, values, -torch.inf).amax(-1, keepdim=True)
    low, high = (torch.where(edge.isfinite(), edge, 0.0) for edge in (low, high))
    width = ((high - low) / BINS).clamp_min(1e-12)
    index = ((values - low) / width).clamp_(0, BINS - 1).long()
    counts = values.new_zeros(len(values), BINS).scatter_add_(1, index, weight)
    return low + width * _inverse_cdf(counts, shares)


def _inverse_cdf(counts: Tensor, shares: tuple[float, ...]) -> Tensor:
    cumulative = counts.cumsum(-1)
    wanted = cumulative[:, -1:] * counts.new_tensor(shares)
    bin_ = torch.searchsorted(cumulative, wanted.contiguous()).clamp_max(BINS - 1)
    inside = counts.gather(1, bin_).clamp_min(1)
    before = cumulative.gather(1, bin_) - counts.gather(1, bin_)
    return bin_ + ((wanted - before) / inside).clamp(0, 1)


def _plane(od: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The plane of most spread: (B, 3, 2) basis, first vector of most, and (B, 3) eigenvalues."""
    count = weight.sum(-1)[:, None, None].clamp_min(2)
    mean = (od @ weight[:, :, None]) / count
    centred = (od - mean) * weight[:, None]
    covariance = (centred @ centred.mT / (count - 1)).double()
    values, vectors = torch.linalg.eigh(covariance)
    basis = vectors[..., [2, 1]]
    basis = torch.where(basis.sum(1, keepdim=True) < 0, -basis, basis)
    return basis.float(), values.float()


def _extreme_vectors(od: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """(B, 2, 3) unit vectors at the extreme angles of the plane, redder first; eigenvalues."""
    basis, eigenvalues = _plane(od, weight)
    along = basis.mT @ od
    angles = torch.atan2(along[:, 1], along[:, 0])
    extremes = masked_quantile(angles, weight, (alpha / 100, 1 - alpha / 100))
    circle = torch.stack([extremes.cos(), extremes.sin()], -1)
    vectors = circle @ basis.mT
    swap = vectors[:, 0, 0] < vectors[:, 1, 0]
    return torch.where(swap[:, None, None], vectors.flip(1), vectors), eigenvalues


def unmix(matrix: Tensor) -> Tensor:
    """(B, 2, 3) map from optical density to concentrations: least squares for (B, 2, 3) stains."""
    gram = matrix @ matrix.mT
    a, b, d = gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]
    determinant = (a * d - b * b).clamp_min(1e-9)
    inverse = torch.stack([d, -b, -b, a], -1).reshape(-1, 2, 2) / determinant[:, None, None]
    return inverse @ matrix


def _scales(od: Tensor, matrix: Tensor, constants: Constants) -> Tensor:
    concentration = unmix(matrix) @ od
    rows = concentration.flatten(0, 1)
    share = constants.scale_percentile / 100
    return masked_quantile(rows, torch.ones_like(rows), (share,)).reshape(-1, 2)


def _has_tissue(grey: Tensor, weight: Tensor, limits: Limits) -> Tensor:
    tissue = weight.mean(-1)
    clipped = (grey.amin(1) <= 0) * weight
    return (tissue >= limits.min_tissue) & (clipped.mean(-1) <= limits.max_clipped * tissue)


def _is_h_and_e(matrix: Tensor, eigenvalues: Tensor, limits: Limits) -> Tensor:
    cosine = (matrix[:, 0] * matrix[:, 1]).sum(-1).clamp(-1, 1)
    angle = torch.rad2deg(cosine.acos())
    two_stains = (
        (angle >= limits.min_angle_deg)
        & (angle <= limits.max_angle_deg)
        & (eigenvalues[:, 1] >= limits.min_plane_to_noise * eigenvalues[:, 0])
    )
    colours = (matrix >= limits.min_component).all(-1).all(-1) & (
        matrix[:, :, 1] >= limits.min_green
    ).all(-1)
    return two_stains & colours


def _macenko(grey: Tensor, constants: Constants) -> TwoStain:
    """Macenko et al. 2009, after Veta's published implementation.

    The plane of the two largest eigenvectors of the tissue's OD covariance; stains are the
    extreme angles in it; scales are percentiles of least-squares concentrations over all pixels.
    """
    od = optical_density(grey, constants)
    weight = tissue_weight(od, constants.beta)
    matrix, eigenvalues = _extreme_vectors(od, weight, constants.alpha)
    matrix = matrix.nan_to_num()
    scale = _scales(od, matrix, constants)
    valid = (
        _has_tissue(grey, weight, LIMITS)
        & _is_h_and_e(matrix, eigenvalues, LIMITS)
        & _is_strong(scale, constants)
    )
    return TwoStain("macenko", valid, matrix, scale)


def _is_strong(scale: Tensor, constants: Constants) -> Tensor:
    return (scale * math.log(constants.log_base) >= LIMITS.min_scale).all(-1)


def _ruifrok(grey: Tensor, constants: Constants) -> TwoStain:
    """Fixed vectors of Ruifrok & Johnston 2001; scales as in Macenko."""
    od = optical_density(grey, constants)
    weight = tissue_weight(od, constants.beta)
    matrix = grey.new_tensor(RUIFROK_MATRIX)
    matrix = (matrix / matrix.norm(dim=-1, keepdim=True)).expand(len(grey), 2, 3)
    scale = _scales(od, matrix, constants)
    varied = _plane(od, weight)[1][:, 2] > LIMITS.min_variance
    valid = _has_tissue(grey, weight, LIMITS) & _is_strong(scale, constants) & varied
    return TwoStain("ruifrok", valid, matrix, scale)


def _reinhard(grey: Tensor, constants: Constants) -> LabStats:
    """Mean and deviation of L, a, b over tissue, after Reinhard et al. 2001 (in CIE LAB)."""
    weight = tissue_weight(optical_density(grey, constants), constants.beta)
    lab = rgb_to_lab(grey / 255)
    count = weight.sum(-1)[:, None, None].clamp_min(1)
    mean = (lab @ weight[:, :, None]) / count
    variance = ((lab - mean).square() @ weight[:, :, None]) / count
    std = variance.clamp_min(0).sqrt().squeeze(-1)
    valid = _has_tissue(grey, weight, LIMITS) & (std[:, 0] >= LIMITS.min_lab_std)
    return LabStats("reinhard", valid & (std > 0).all(-1), mean.squeeze(-1), std)


METHODS: dict[str, Callable[[Tensor, Constants], StainProfile]] = {
    "macenko": _macenko,
    "ruifrok": _ruifrok,
    "reinhard": _reinhard,
}
