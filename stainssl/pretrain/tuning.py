"""Training of given weights: which of them, at which rate, and how far they may move."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stainssl.pretrain.distributed import gathered


def freeze_all_but(model: nn.Module, trained: set[str]) -> None:
    """Have a network learn some of its parameters only.

    Args:
        trained: their names.
    """
    for name, value in model.named_parameters():
        value.requires_grad_(name in trained)


def frozen_norms(model: nn.Module, *, all_of_them: bool = False) -> set[str]:
    """Names of the batch norms of which nothing is trained, in a network of which some is not.

    Their running statistics belong to their weights: they must not follow the new images.

    Args:
        all_of_them: those that are trained too: their weights learn, their statistics stay.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if all_of_them:
        return set(norms)
    if all(value.requires_grad for value in model.parameters()):
        return set()
    return {n for n, m in norms.items() if not any(v.requires_grad for v in m.parameters())}


def hold_norms(model: nn.Module, names: set[str] | None) -> None:
    """Put batch norms of a network in training into evaluation: they keep their statistics.

    Args:
        names: of the norms, as `frozen_norms` gives them; None: all.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (names is None or name in names):
            module.eval()


def parameter_groups(
    backbone: nn.Module,
    others: Sequence[nn.Module],
    *,
    weight_decay: float,
    lr_backbone: float,
    layer_decay: float,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What an optimizer trains, of the heads and of the backbone.

    Args:
        backbone: of timm, or a pooling around its `model`, where rates differ by layer.
        others: heads.
        weight_decay: of matrices; biases and norms have none.
        lr_backbone: peak rate of the backbone's last layer, and of a pooling's layers.
        layer_decay: factor of the rate from a layer to the one before (Clark et al. 2020).

    Returns:
        Groups of the heads, at the optimizer's own rate, and of the backbone, with theirs.
    """
    heads = param_groups_weight_decay(nn.ModuleList(others), weight_decay)
    if layer_decay == 1:
        found = param_groups_weight_decay(backbone, weight_decay)
    else:
        network: Any = backbone if hasattr(backbone, "group_matcher") else backbone.model
        found = param_groups_layer_decay(network, weight_decay, layer_decay=layer_decay)
        found += param_groups_weight_decay(_behind(backbone, network), weight_decay)
    rated = [{**group, "lr": lr_backbone * group.get("lr_scale", 1.0)} for group in found]
    return [g for g in heads if g["params"]], [g for g in rated if g["params"]]


def _behind(backbone: nn.Module, network: nn.Module) -> nn.ModuleList:
    """The layers of a pooling around a network; none where it has none or is none."""
    pooled = () if backbone is network else backbone.children()
    return nn.ModuleList(layer for layer in pooled if layer is not network)


class Anchor(nn.Module):
    """A loss that holds vectors near those of the network that training starts from.

    The mean cosine distance of each view's vector to what the given network, frozen, makes of the
    same view: distillation of the network by itself (Hinton et al. 2015).

    Args:
        initial: (B, 3, S, S) → (B, D), copied.
        weight: of the loss.
    """

    def __init__(self, initial: nn.Module, weight: float) -> None:
        super().__init__()
        self.initial = copy.deepcopy(initial).eval().requires_grad_(False)
        self._weight = weight

    def train(self, mode: bool = True) -> Anchor:
        """Stay in evaluation: the given vectors are those that the encoder gives in use."""
        return super().train(False)

    def forward(self, vectors: Tensor, views: Tensor) -> Tensor:
        """The weighted loss of the joint batch, a scalar.

        Args:
            vectors: (2B, D) of the views under the network in training.
            views: (2B, 3, S, S).
        """
        with torch.no_grad():
            given = self.initial(views)
        likeness = F.cosine_similarity(vectors.float(), given.float(), dim=1)
        return self._weight * (1 - gathered(likeness).mean())
