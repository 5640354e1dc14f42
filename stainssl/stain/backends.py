"""Which code runs the heavy lines: numba on a CPU, Triton's map on a GPU, torch everywhere else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from stainssl.stain import eager
from stainssl.stain.density import Constants, chunk_images

if TYPE_CHECKING:
    from stainssl.stain import compiled

    Sample: TypeAlias = eager.Sample | compiled.Sample

log = logging.getLogger(__name__)


def backend(*tensors: Tensor) -> ModuleType:
    """The code for tensors of one device: `eager` where one of them needs a gradient."""
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    devices = {t.device for t in tensors}
    if wanted or len(devices) != 1 or torch.compiler.is_compiling():
        return eager
    [device] = devices
    if device.type == "cuda":
        return _fused(device)
    return _compiled() if device.type == "cpu" else eager


@cache
def _fused(device: torch.device) -> ModuleType:
    """`fused` where it runs there and agrees with `eager`: tried once on a small image."""
    try:
        from stainssl.stain import fused

        if fused.agrees(device):
            return fused
        reason: object = "it differs from torch"
    except Exception as error:  # Triton's own, of any kind: none may end a training run
        reason = error
    log.warning(
        "The Triton map is not used on %s (%s): stains are mapped by torch.", device, reason
    )
    return eager


def _compiled() -> ModuleType:
    try:
        from stainssl.stain import compiled
    except ImportError as error:
        log.warning("numba cannot be used (%s): stains are mapped by torch, slower.", error)
        return eager
    return compiled


def samples(images: Tensor, constants: Constants, tissue: Tensor | None = None) -> Iterator[Sample]:
    """The images as samples to estimate from: one, or a few at a time so that the cache holds them.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1].
        constants: background and threshold.
        tissue: (B, H, W) bool, or None.
    """
    chosen = backend(images)
    step = chunk_images(images) if chosen.Sample is eager.Sample else max(1, len(images))
    for start in range(0, max(1, len(images)), step):
        mask = None if tissue is None else tissue[start : start + step]
        yield chosen.Sample(images[start : start + step], constants, mask)
