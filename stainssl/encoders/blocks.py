"""A network's layers in order: which are its last blocks, and which can take an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from stainssl.errors import StainsslError

_BEHIND = "\0"  # a name that matches nothing, as those of layers behind the last block


def last_blocks(model: nn.Module, count: int) -> set[str]:
    """Names of the parameters of a network's last blocks, and of the norm or head behind them.

    Args:
        model: of timm, which says what its blocks are: those of a transformer, the stages of a
            convolutional or hierarchical network.
        count: of blocks.

    Raises:
        StainsslError: it does not say, or has fewer.
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
    # Behind are norms and heads, and what timm has no place for: tokens such as registers, which go
    # in before the first block.
    return {name for name, layer in last.items() if layer < behind or "." in name}


@torch.no_grad()
def adaptable(model: nn.Module, rank: int, input_size: int) -> list[str]:
    """Names of the layers that take a low-rank adapter: linear ones and 1 × 1 convolutions.

    Left out are layers that an adapter would not be smaller than, and those whose weights are used
    without the layer being called, so that an adapter would do nothing.

    Args:
        model: (B, 3, S, S) → (B, D).
        rank: of the adapters.
        input_size: S, in px.

    Raises:
        StainsslError: there are none.
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
    """Layers of the kinds that take one; subclasses do more than their weights say."""
    for name, layer in model.named_modules():
        if type(layer) is nn.Conv2d and (layer.kernel_size != (1, 1) or layer.groups > 1):
            continue
        if type(layer) in (nn.Linear, nn.Conv2d):
            weight: Any = layer.weight
            out, inner = weight.shape[:2]
            if rank * (out + inner) < out * inner:
                yield name, layer
