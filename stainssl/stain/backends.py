"""Which code runs the heavy lines: numba for images on a CPU, torch everywhere else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
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
    """`compiled` where all tensors are on a CPU and none needs a gradient, else `eager`."""
    plain = all(t.device.type == "cpu" for t in tensors)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not plain or wanted or torch.compiler.is_compiling():
        return eager
    return _compiled()


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
    step = chunk_images(images) if chosen is eager else max(1, len(images))
    for start in range(0, max(1, len(images)), step):
        mask = None if tissue is None else tissue[start : start + step]
        yield chosen.Sample(images[start : start + step], constants, mask)
