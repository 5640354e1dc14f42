"""Reference backend of stain estimation and normalization: torch, any device, with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from stainssl.stain.density import (
    Constants,
    chunk_images,
    grey_levels,
    optical_density,
    subsampled,
)
from stainssl.stain.lab import lab_to_rgb, rgb_to_lab

BINS = 4096  # bins of the histograms from which percentiles are computed


class Moments(NamedTuple):
    """Tissue shares and optical density covariance of B images.

    Attributes:
        tissue: (B,) share of pixels that are tissue.
        clipped: (B,) share of pixels that are tissue and have a channel at 0.
        covariance: (B, 3, 3) float64, covariance of the tissue's optical density.
    """

    tissue: Tensor
    clipped: Tensor
    covariance: Tensor


class LabMoments(NamedTuple):
    """Tissue shares and LAB statistics of B images.

    Attributes:
        tissue, clipped: as in `Moments`.
        mean, std: (B, 3) mean and standard deviation of the tissue's L, a, b.
    """

    tissue: Tensor
    clipped: Tensor
    mean: Tensor
    std: Tensor


class Sample:
    """Pixels of a batch of images, with their optical density and tissue mask.

    `numba_backend.Sample` has the same methods and computes the same values on a CPU.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1].
        constants: background and tissue threshold.
        tissue: (B, H, W) bool tissue mask; by default, pixels whose optical density is at least
            `constants.beta` in every channel.
    """

    def __init__(self, images: Tensor, constants: Constants, tissue: Tensor | None = None) -> None:
        self.constants, self._images, self._tissue = constants, images, tissue
        self._grey = grey_levels(subsampled(images, constants.max_pixels))
        self._od = optical_density(self._grey, constants)
        if tissue is None:
            inside = self._od.amin(1) >= constants.beta
        else:
            inside = subsampled(tissue[:, None], constants.max_pixels).flatten(1)
        self._weight = inside.to(self._od.dtype)

    def thinned(self, max_pixels: int) -> Sample:
        """Return a sample of the same images, subsampled to at most `max_pixels` pixels each."""
        constants = replace(self.constants, max_pixels=max_pixels)
        return Sample(self._images, constants, self._tissue)

    def moments(self) -> Moments:
        """Tissue shares, and covariance of the tissue's optical density."""
        weight, od = self._weight, self._od
        count = weight.sum(-1)[:, None, None].clamp_min(2)
        mean = (od @ weight[:, :, None]) / count
        centred = (od - mean) * weight[:, None]
        covariance = (centred @ centred.mT / (count - 1)).double()
        return Moments(*self._shares(), covariance)

    def _shares(self) -> tuple[Tensor, Tensor]:
        clipped = (self._grey.amin(1) <= 0) * self._weight
        return self._weight.mean(-1), clipped.mean(-1)

    def angle_quantiles(self, basis: Tensor, shares: tuple[float, ...]) -> Tensor:
        """(B, len(shares)) quantiles of the tissue's angles in the plane of (B, 3, 2) `basis`."""
        along = basis.mT @ self._od
        return masked_quantile(torch.atan2(along[:, 1], along[:, 0]), self._weight, shares)

    def concentration_quantile(self, unmix: Tensor, share: float) -> Tensor:
        """(B, 2) quantile of each stain's concentration over all pixels, by (B, 2, 3) `unmix`."""
        rows = (unmix @ self._od).flatten(0, 1)
        return masked_quantile(rows, torch.ones_like(rows), (share,)).reshape(-1, 2)

    def lab_moments(self) -> LabMoments:
        """Tissue shares, and mean and standard deviation of the tissue's L, a, b."""
        lab, weight = rgb_to_lab(self._grey / 255), self._weight
        count = weight.sum(-1)[:, None, None].clamp_min(1)
        mean = (lab @ weight[:, :, None]) / count
        variance = ((lab - mean).square() @ weight[:, :, None]) / count
        std = variance.clamp_min(0).sqrt()
        return LabMoments(*self._shares(), mean.squeeze(-1), std.squeeze(-1))

    def sparse_vectors(self, start: Tensor, penalty: float, rounds: int) -> Tensor:
        """Stain vectors by sparse non-negative factorisation of the tissue's optical density.

        Minimizes |OD - C M|² / 2 + penalty · |C| over C >= 0 and unit vectors M >= 0, alternately:
        C exactly for each pixel, then M one vector after the other, from sums over the pixels.

        Args:
            start: (B, 2, 3) non-negative unit vectors.
            penalty: sparsity penalty, in units of the optical density.
            rounds: number of iterations.

        Returns:
            (B, 2, 3) non-negative unit vectors.
        """
        matrix, weighted = start, self._od * self._weight[:, None]
        for _ in range(rounds):
            code = sparse_code(matrix @ self._od - penalty, matrix)
            gram = (code * self._weight[:, None]) @ code.mT
            matrix = improved_vectors(matrix, gram, code @ weighted.mT)
        return matrix


def sparse_code(along: Tensor, matrix: Tensor) -> Tensor:
    """(B, 2, P) non-negative concentrations: the exact solution of the lasso with two stains.

    Args:
        along: (B, 2, P) optical densities projected on each vector, minus the penalty.
        matrix: (B, 2, 3) non-negative unit vectors.
    """
    cosine = (matrix[:, 0] * matrix[:, 1]).sum(-1)[:, None]
    h, e = along.unbind(1)
    rest = (1 - cosine.square()).clamp_min(1e-6)
    both_h, both_e = (h - cosine * e) / rest, (e - cosine * h) / rest
    only_h, only_e = torch.where(both_e < 0, h, both_h), torch.where(both_h < 0, e, both_e)
    return torch.stack([only_h, only_e], 1).clamp_min(0)


def improved_vectors(matrix: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """Update both stain vectors once by block coordinate descent (Mairal et al. 2010).

    Args:
        matrix: (B, 2, 3) stain vectors.
        gram: (B, 2, 2) products of concentrations, summed over pixels.
        cross: (B, 2, 3) products of concentrations and optical densities, summed over pixels.
    """
    vectors = list(matrix.unbind(1))
    for i in (0, 1):
        fitted = gram[:, i, :1] * vectors[0] + gram[:, i, 1:] * vectors[1]
        step = (cross[:, i] - fitted) / gram[:, i, i, None].clamp_min(1e-9)
        moved = (vectors[i] + step).clamp_min(0)
        length = moved.norm(dim=-1, keepdim=True)
        vectors[i] = torch.where(length > 1e-6, moved / length.clamp_min(1e-6), vectors[i])
    return torch.stack(vectors, 1)


def masked_quantile(values: Tensor, weight: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Quantiles of the values of each row whose weight is 1, from a histogram of 4096 bins.

    Interpolation within a bin is linear, so that the error is below one bin, 1/4096 of the row's
    range. Counts are integers: the result depends neither on the batch nor on the order of pixels.

    Args:
        values: (B, P) float32, finite.
        weight: (B, P) float32, 0 or 1.
        shares: quantiles, 0–1.

    Returns:
        (B, len(shares)) float32; 0 for a row without a weight of 1.
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


def map_density(images: Tensor, matrix: Tensor, shift: Tensor, constants: Constants) -> Tensor:
    """Apply (B, 3, 3) `matrix` and (B, 3) `shift` to the optical density of (B, 3, H, W) images."""
    unit = math.log(constants.log_base)

    def mapped(grey: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
        density = torch.baddbmm(shift[..., None], matrix, optical_density(grey, constants))
        return constants.io * torch.exp(density * -unit) - constants.offset

    return in_chunks(images, mapped, matrix, shift)


def map_lab(images: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Map (B, 3, H, W) images by gain · LAB + shift, with (B, 3) `gain` and `shift`."""

    def mapped(grey: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        lab = rgb_to_lab(grey / 255) * gain[..., None] + shift[..., None]
        return lab_to_rgb(lab) * 255

    return in_chunks(images, mapped, gain, shift)


def in_chunks(images: Tensor, mapped: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Apply a function to grey levels 0–255, a few images at a time.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1].
        mapped: called with (b, 3, P) grey levels and the parameters of the same b images.
        parameters: tensors with a leading axis of length B.

    Returns:
        (B, 3, H, W) in the images' dtype, clipped to 0–255 or [0, 1].
    """
    step = chunk_images(images)
    chunks = zip(images.split(step), *(p.split(step) for p in parameters), strict=True)
    done = [_from_grey(mapped(grey_levels(chunk), *each), chunk) for chunk, *each in chunks]
    return torch.cat(done)


def _from_grey(grey: Tensor, like: Tensor) -> Tensor:
    grey = grey.clamp(0, 255).reshape(like.shape)
    return (
        grey.round().to(torch.uint8) if like.dtype == torch.uint8 else (grey / 255).to(like.dtype)
    )
