"""The optical density map as a Triton kernel, which reads and writes every pixel once.

Only this map, which runs at every training step, is fused; everything else is `torch_backend`'s.
`backends` uses this module on a GPU if it agrees with `torch_backend` there. Tests run it on a CPU
in Triton's interpreter; its speed on a GPU has not been measured.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stainssl.stain import torch_backend
from stainssl.stain.density import Constants, check_images
from stainssl.stain.torch_backend import Sample, map_lab

__all__ = ["Sample", "agrees", "map_density", "map_lab"]

BLOCK = 1024  # pixels per program


@triton.jit
def _density(pixels, place, inside, log_io, offset):  # type: ignore[no-untyped-def]
    """Natural-log optical density of pixels, uint8 or float in [0, 1]."""
    value = tl.load(pixels + place, mask=inside, other=0)
    grey = value.to(tl.float32)
    if value.dtype != tl.uint8:
        grey = tl.where(grey > 0, tl.minimum(grey, 1.0), 0.0) * 255  # NaN counts as 0
    return log_io - tl.log(grey + offset)


@triton.jit
def _map(  # type: ignore[no-untyped-def]
    pixels, out, matrix, shift, count, io, log_io, offset, BLOCK: tl.constexpr
):
    image = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    first = image * 3 * count
    r = _density(pixels + first, place, inside, log_io, offset)
    g = _density(pixels + first + count, place, inside, log_io, offset)
    b = _density(pixels + first + 2 * count, place, inside, log_io, offset)
    for c in tl.static_range(3):
        row = matrix + image * 9 + c * 3
        density = tl.load(row) * r + tl.load(row + 1) * g + tl.load(row + 2) * b
        density += tl.load(shift + image * 3 + c)
        grey = tl.minimum(tl.maximum(io * tl.exp(-density) - offset, 0.0), 255.0)
        if out.dtype.element_ty == tl.uint8:
            made = (grey + 0.5).to(tl.uint8)
        else:
            made = (grey / 255).to(out.dtype.element_ty)
        tl.store(out + first + c * count + place, made, mask=inside)


def map_density(images: Tensor, matrix: Tensor, shift: Tensor, constants: Constants) -> Tensor:
    """See `torch_backend.map_density`."""
    check_images(images)
    pixels = images.contiguous()
    out, count = torch.empty_like(pixels), pixels.shape[2] * pixels.shape[3]
    grid: Any = (len(pixels), triton.cdiv(count, BLOCK))
    if not out.numel():
        return out
    _map[grid](
        pixels,
        out,
        matrix.float().contiguous(),
        (shift.float() * math.log(constants.log_base)).contiguous(),
        count,
        constants.io,
        math.log(constants.io),
        constants.offset,
        BLOCK=BLOCK,
    )
    return out


def agrees(device: torch.device) -> bool:
    """Whether kernel and `torch_backend` agree to one grey level on a small image on `device`.

    Raises:
        Exception: any exception of Triton if it cannot compile or run.
    """
    levels = torch.arange(256, dtype=torch.uint8, device=device).reshape(1, 1, 16, 16)
    images = torch.cat([levels, levels.flip(2), levels.mT], 1)
    matrix = torch.tensor([[[0.9, 0.1, 0.0], [0.1, 0.8, 0.2], [-0.1, 0.0, 1.1]]], device=device)
    shift = torch.tensor([[0.1, -0.1, 0.0]], device=device)
    sides = [
        side(images, matrix, shift, Constants())
        for side in (map_density, torch_backend.map_density)
    ]
    return bool((sides[0].int() - sides[1].int()).abs().max() <= 1)
