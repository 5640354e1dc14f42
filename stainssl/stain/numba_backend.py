"""numba backend of stain estimation and normalization: images on a CPU, without gradients.

Results equal those of `torch_backend` up to rounding. numba compiles at the first use (some
seconds) and caches the result beside `kernels.py`, or in the user's cache folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stainssl.stain import kernels
from stainssl.stain.density import Constants, check_images, optical_density, subsampled
from stainssl.stain.lab import LAB, LAB_OFFSET, to_linear
from stainssl.stain.torch_backend import LabMoments, Moments

f32 = np.float32


class Sample:
    """See `torch_backend.Sample`; for images on a CPU."""

    def __init__(self, images: Tensor, constants: Constants, tissue: Tensor | None = None) -> None:
        check_images(images)
        self.constants, self._images, self._tissue = constants, images, tissue
        self._pixels = _pixels(subsampled(images, constants.max_pixels))
        self._mask = np.zeros((len(images), 0), np.uint8)
        if tissue is not None:
            kept = subsampled(tissue[:, None], constants.max_pixels).flatten(1)
            self._mask = np.ascontiguousarray(kept.numpy(), np.uint8)

    def thinned(self, max_pixels: int) -> Sample:
        """See `torch_backend.Sample.thinned`."""
        constants = replace(self.constants, max_pixels=max_pixels)
        return Sample(self._images, constants, self._tissue)

    def moments(self) -> Moments:
        """See `torch_backend.Sample.moments`."""
        sums = np.zeros((len(self._pixels), 11))
        _run(kernels.moments, self._pixels, self._mask, *self._density(), self._beta(), sums)
        return Moments(*self._shares(sums), torch.from_numpy(_covariance(sums)))

    def angle_quantiles(self, basis: Tensor, shares: tuple[float, ...]) -> Tensor:
        """See `torch_backend.Sample.angle_quantiles`."""
        out = np.empty((len(self._pixels), len(shares)))
        rows = np.ascontiguousarray(basis.mT.numpy(), f32)
        tissue = (self._pixels, self._mask, *self._density(), self._beta())
        _run(kernels.angles, *tissue, rows, np.array(shares), out)
        return torch.from_numpy(out).float()

    def concentration_quantile(self, unmix: Tensor, share: float) -> Tensor:
        """See `torch_backend.Sample.concentration_quantile`."""
        out = np.empty((len(self._pixels), 2))
        rows = np.ascontiguousarray(unmix.numpy(), f32)
        _run(kernels.concentrations, self._pixels, *self._density(), rows, np.array([share]), out)
        return torch.from_numpy(out).float()

    def lab_moments(self) -> LabMoments:
        """See `torch_backend.Sample.lab_moments`."""
        sums, constants = np.zeros((len(self._pixels), 8)), self.constants
        brightest = constants.io * constants.log_base**-constants.beta - constants.offset
        if self._pixels.dtype != np.uint8:
            brightest /= 255
        _run(kernels.lab_moments, self._pixels, self._mask, _linear_table(), f32(brightest), sums)
        count = sums[:, :1].clip(1)
        mean = sums[:, 2:5] / count
        std = np.sqrt((sums[:, 5:] / count - mean**2).clip(0))
        return LabMoments(*self._shares(sums), *(torch.from_numpy(a).float() for a in (mean, std)))

    def sparse_vectors(self, start: Tensor, penalty: float, rounds: int) -> Tensor:
        """See `torch_backend.Sample.sparse_vectors`."""
        matrix = np.array(start.numpy(), f32, order="C")
        tissue = (self._pixels, self._mask, *self._density(), self._beta())
        _run(kernels.sparse, *tissue, f32(penalty), rounds, matrix)
        return torch.from_numpy(matrix)

    def _shares(self, sums: Any) -> tuple[Tensor, Tensor]:
        """(B,) share of pixels that are tissue, and (B,) share that is clipped tissue."""
        tissue, clipped = torch.from_numpy(sums[:, :2] / max(1, self._pixels.shape[2])).float().T
        return tissue, clipped

    def _density(self) -> tuple[Any, Any]:
        return _density_table(self.constants), _density_settings(self.constants)

    def _beta(self) -> Any:
        return f32(self.constants.beta)


def _covariance(sums: Any) -> Any:
    """(B, 3, 3) float64 covariance from the sums of `kernels.moments`."""
    count = sums[:, 0].clip(2)[:, None, None]
    mean = sums[:, 2:5] / count[:, 0]
    products = sums[:, [5, 6, 7, 6, 8, 9, 7, 9, 10]].reshape(-1, 3, 3)
    return (products - count * mean[:, :, None] * mean[:, None]) / (count - 1)


def map_density(images: Tensor, matrix: Tensor, shift: Tensor, constants: Constants) -> Tensor:
    """See `torch_backend.map_density`."""
    natural = replace(constants, log_base=math.e)
    tables = (_density_table(natural), _density_settings(natural))
    rows = _floats(matrix), _floats(shift * math.log(constants.log_base))
    ends = f32(constants.io), f32(constants.offset)
    return _mapped(images, kernels.map_density, *tables, *rows, *ends)


def map_lab(images: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """See `torch_backend.map_lab`."""
    # L, a, b are linear in fx, fy, fz, so that an affine map of L, a, b is one of fx, fy, fz.
    lab, offset = gain.new_tensor(LAB), gain.new_tensor(LAB_OFFSET)
    back = torch.linalg.inv(lab)
    matrix = back @ (gain[:, :, None] * lab)
    moved = (gain * offset + shift - offset) @ back.mT
    return _mapped(images, kernels.map_lab, _linear_table(), _floats(matrix), _floats(moved))


def _mapped(images: Tensor, kernel: Callable[..., None], *parameters: Any) -> Tensor:
    check_images(images)
    pixels = _pixels(images)
    out = np.empty(pixels.shape, pixels.dtype)
    _run(kernel, pixels, *parameters, out)
    return torch.from_numpy(out).reshape(images.shape).to(images.dtype)


def _pixels(images: Tensor) -> Any:
    """(B, 3, P) uint8 or float32 array, without a copy if the memory layout allows it."""
    flat = images.detach().flatten(2)
    return (flat if flat.dtype == torch.uint8 else flat.float()).contiguous().numpy()


def _floats(values: Tensor) -> Any:
    return np.ascontiguousarray(values.detach().numpy(), f32)


def _density_table(constants: Constants) -> Any:
    return optical_density(torch.arange(256.0, dtype=torch.float64), constants).numpy().astype(f32)


def _density_settings(constants: Constants) -> Any:
    per_log = 1 / math.log(constants.log_base)
    lift = math.log(constants.io) * per_log
    black = lift - per_log * math.log(constants.offset) - 1e-4  # tolerance for rounding
    return np.array([lift, per_log, constants.offset, black], f32)


def _linear_table() -> Any:
    return to_linear(torch.arange(256.0, dtype=torch.float64) / 255).numpy().astype(f32)


def _run(kernel: Callable[..., None], pixels: Any, *arguments: Any) -> None:
    """Run a kernel on all images, with torch's number of threads."""
    count, threads = len(pixels), torch.get_num_threads()
    step = max(1, -(-count // threads))
    if step >= count:
        return kernel(0, count, pixels, *arguments)
    with ThreadPoolExecutor(threads) as pool:
        for done in [
            pool.submit(kernel, first, min(first + step, count), pixels, *arguments)
            for first in range(0, count, step)
        ]:
            done.result()
    return None
