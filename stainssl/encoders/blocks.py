"""Layers of a network: the last blocks, and the layers that can take an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from stainssl.errors import StainsslError

_BEHIND = "\0"  # matches no block, and so gets the number of the layers after the last block


def last_blocks(model: nn.Module, count: int) -> set[str]:
    """Names of the parameters of a network's last blocks, and of the norm or head after them.

    Args:
        model: a timm network. timm defines its blocks: those of a transformer, or the stages of a
            convolutional or hierarchical network.
        count: number of blocks.

    Raises:
        StainsslError: timm does not define the blocks, or there are fewer.
    """
    kind = type(model).__name__
    matcher_of: Any = getattr(model, "group_matcher", None)
    if matcher_of is None:
        raise StainsslError(f"timm does not define the blocks of a {kind}: use tune: full.")
    names: list[tuple[str, Any]] = [(name, None) for name, _ in model.named_parameters()]
    every = iter([*names, (_BEHIND, None)])
    layer_of = group_with_matcher(every, matcher_of(coarse=True), reverse=True)
    behind = layer_of.pop(_BEHIND)
    blocks = behind - 1  # layer 0 is the stem
    if count > blocks:
        raise StainsslError(
            f"last-{count}: a {kind} has {blocks} blocks or stages: write last-{blocks} at most, or"
            " full."
        )
    last = {name: layer for name, layer in layer_of.items() if layer >= behind - count}
    # After the last block are norms and heads. timm also counts parameters there that match no
    # block, such as register tokens, which are added before the first: their names have no dot.
    return {name for name, layer in last.items() if layer < behind or "." in name}


@torch.no_grad()
def adaptable(model: nn.Module, rank: int, input_size: int) -> list[str]:
    """Names of the layers that can take a low-rank adapter: linear layers and 1 × 1 convolutions.

    Layers that are not larger than their adapter are left out, and so are layers whose weights are
    used without calling the layer, where an adapter would have no effect.

    Args:
        model: (B, 3, S, S) → (B, D).
        rank: of the adapters.
        input_size: S, in px.

    Raises:
        StainsslError: there is no such layer.
    """
    called: set[str] = set()
    layers = dict(_candidates(model, rank))
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, layer in layers.items()
    ]
    was_training, weight = model.training, next(model.parameters())
    model.eval()(torch.zeros(1, 3, input_size, input_size, device=weight.device))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    if not called:
        raise StainsslError(
            f"A {type(model).__name__} has no layer larger than an adapter of rank {rank}:"
            " use a lower rank, or tune: full."
        )
    return [name for name in layers if name in called]


def _candidates(model: nn.Module, rank: int) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers and 1 × 1 convolutions larger than an adapter, by name.

    Subclasses are left out: they may do more than apply their weights.
    """
    for name, layer in model.named_modules():
        if type(layer) is nn.Conv2d and (layer.kernel_size != (1, 1) or layer.groups > 1):
            continue
        if type(layer) in (nn.Linear, nn.Conv2d):
            weight: Any = layer.weight
            out, inner = weight.shape[:2]
            if rank * (out + inner) < out * inner:
                yield name, layer
