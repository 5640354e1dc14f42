"""A faster weight gradient of depthwise convolutions on a CPU.

PyTorch's own is slow on a CPU if the kernel is larger than its input, as in the last layers of an
EfficientNet or MobileNet at 64 px: it takes up to ten times as long as multiplying input and
gradient at all pairs of positions, of which there are few.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

# Stride, padding and kernel side in px, the same along both axes.
ConvGeometry = tuple[int, int, int]


def speed_up(model: nn.Module) -> None:
    """Make a model's depthwise convolutions use the faster gradient where it applies.

    Outputs are the same, gradients the same up to rounding. Weights, their names and the classes of
    the modules do not change.

    Args:
        model: modified in place.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _is_plain_depthwise(module):
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _is_plain_depthwise(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    square = len({*conv.kernel_size}) == len({*conv.stride}) == 1
    padded = not isinstance(conv.padding, str) and len({*conv.padding}) == 1
    # A subclass may pad the input itself first (timm's version of TensorFlow's "same").
    is_plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and conv.bias is None
    return is_plain and depthwise and square and padded and set(conv.dilation) == {1}


def _forward(conv: nn.Conv2d, images: Tensor) -> Tensor:
    on_cpu = images.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if on_cpu and torch.is_grad_enabled() and max(images.shape[2:]) < conv.kernel_size[0]:
        found: Tensor = _Depthwise.apply(images, conv.weight, conv.stride[0], conv.padding[0])
        return found
    return F.conv2d(images, conv.weight, None, conv.stride, conv.padding, 1, conv.groups)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry = (stride, padding, weight.shape[2])
        return F.conv2d(images, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, padding, _ = ctx.geometry
        of_images = None
        if ctx.needs_input_grad[0]:
            of_images = conv2d_input(images.shape, weight, grad, stride, padding, 1, len(weight))
        return of_images, _weight_gradient(images, grad, ctx.geometry), None, None


def _weight_gradient(images: Tensor, grad: Tensor, geometry: ConvGeometry) -> Tensor:
    """(C, 1, K, K) gradient of the weight.

    Args:
        images: (N, C, H, W) input.
        grad: (N, C, H', W') gradient of the output.
    """
    count, channels, height, width = images.shape
    out_height, out_width = grad.shape[2:]
    inputs = images.permute(1, 2, 3, 0).reshape(channels, height * width, count)
    outputs = grad.permute(1, 0, 2, 3).reshape(channels, count, out_height * out_width)
    pairs = torch.bmm(inputs, outputs).reshape(channels, -1)
    taps = _taps((height, width), (out_height, out_width), geometry).to(pairs.dtype)
    return (pairs @ taps).reshape(channels, 1, geometry[2], geometry[2])


@cache
def _taps(inputs: tuple[int, int], outputs: tuple[int, int], geometry: ConvGeometry) -> Tensor:
    """(HW·H'W', K²): 1 where a weight of the kernel connects an input and an output position."""
    stride, padding, side = geometry
    axes = []
    for size, out in zip(inputs, outputs, strict=True):
        offset = torch.arange(size)[:, None] - torch.arange(out) * stride + padding
        axes.append(torch.arange(side) == offset[..., None])  # (input, output, K)
    rows, columns = axes
    met = torch.einsum("yik,xjl->yxijkl", rows.float(), columns.float())
    return met.reshape(-1, side * side)
