"""Choice of the stain backend: numba on a CPU, Triton on a GPU, torch otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from stainssl.stain import torch_backend
from stainssl.stain.density import Constants, chunk_images

if TYPE_CHECKING:
    from stainssl.stain import numba_backend

    Sample: TypeAlias = torch_backend.Sample | numba_backend.Sample

log = logging.getLogger(__name__)


def backend(*tensors: Tensor) -> ModuleType:
    """Return the backend module for these tensors.

    It is `torch_backend` if a tensor needs a gradient, if they are on several devices, or while
    `torch.compile` traces.
    """
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    devices = {t.device for t in tensors}
    if wanted or len(devices) != 1 or torch.compiler.is_compiling():
        return torch_backend
    [device] = devices
    if device.type == "cuda":
        return _triton(device)
    return _numba() if device.type == "cpu" else torch_backend


@cache
def _triton(device: torch.device) -> ModuleType:
    """Return `triton_backend` if it runs and agrees with torch on a small image; tried once."""
    try:
        from stainssl.stain import triton_backend

        if triton_backend.agrees(device):
            return triton_backend
        reason: object = "it differs from torch"
    except Exception as error:  # Triton raises many kinds; none may end a training run
        reason = error
    log.warning("Triton is not used on %s (%s): stains are mapped with torch.", device, reason)
    return torch_backend


def _numba() -> ModuleType:
    try:
        from stainssl.stain import numba_backend
    except ImportError as error:
        log.warning(
            "numba cannot be used (%s): stains are mapped with torch, which is slower.", error
        )
        return torch_backend
    return numba_backend


def samples(images: Tensor, constants: Constants, tissue: Tensor | None = None) -> Iterator[Sample]:
    """Yield the images as samples for estimation.

    numba takes the batch as one sample; torch a few images at a time, which fit in the cache.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1].
        constants: background and tissue threshold.
        tissue: (B, H, W) bool tissue mask, or None.
    """
    chosen = backend(images)
    step = chunk_images(images) if chosen.Sample is torch_backend.Sample else max(1, len(images))
    for start in range(0, max(1, len(images)), step):
        mask = None if tissue is None else tissue[start : start + step]
        yield chosen.Sample(images[start : start + step], constants, mask)
