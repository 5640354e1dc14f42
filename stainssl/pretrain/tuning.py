"""Training of pretrained weights: which are trained, at which rate, and distillation."""

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
    """Freeze all parameters of a network except some.

    Args:
        model: modified in place.
        trained: names of the parameters that are trained.
    """
    for name, value in model.named_parameters():
        value.requires_grad_(name in trained)


def frozen_norms(model: nn.Module, *, all_of_them: bool = False) -> set[str]:
    """Names of the batch norms without trained parameters in a partly frozen network.

    Their running statistics belong to their frozen weights, and must not follow the new images.

    Args:
        model: the network.
        all_of_them: return all batch norms: their statistics stay, even if weights are trained.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if all_of_them:
        return set(norms)
    if all(value.requires_grad for value in model.parameters()):
        return set()
    return {n for n, m in norms.items() if not any(v.requires_grad for v in m.parameters())}


def hold_norms(model: nn.Module, names: set[str] | None) -> None:
    """Put batch norms into evaluation mode, in which they use and keep their statistics.

    Args:
        model: modified in place.
        names: of the batch norms, as returned by `frozen_norms`; None: all.
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
    """Parameter groups of an optimizer, for the heads and for the backbone.

    Args:
        backbone: with `layer_decay`, a timm network or a pooling around one (`model`).
        others: heads.
        weight_decay: of matrices; biases and norms have none.
        lr_backbone: peak learning rate of the backbone's last layer, and of a pooling's layers.
        layer_decay: factor of the learning rate from one layer to the layer before it (Clark et al.
            2020); 1: none.

    Returns:
        Groups of the heads, with the optimizer's learning rate, and of the backbone, with their
        own.
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
    """The layers of a pooling around a network; empty if there is no pooling or it has none."""
    pooled = () if backbone is network else backbone.children()
    return nn.ModuleList(layer for layer in pooled if layer is not network)


class DistillationLoss(nn.Module):
    """Distillation loss that keeps embeddings close to those of the initial network.

    It is the mean cosine distance between the embedding of each view and that of the same view by
    the initial network, which is frozen (distillation: Hinton et al. 2015).

    Args:
        initial: (B, 3, S, S) → (B, D), copied.
        weight: of the loss.
    """

    def __init__(self, initial: nn.Module, weight: float) -> None:
        super().__init__()
        self.initial = copy.deepcopy(initial).eval().requires_grad_(False)
        self._weight = weight

    def train(self, mode: bool = True) -> DistillationLoss:
        """Stay in evaluation mode, so that the targets are the encoder's embeddings in use."""
        return super().train(False)

    def forward(self, vectors: Tensor, views: Tensor) -> Tensor:
        """Weighted loss of the joint batch, a scalar.

        Args:
            vectors: (2B, D) embeddings of the views by the network in training.
            views: (2B, 3, S, S).
        """
        with torch.no_grad():
            given = self.initial(views)
        likeness = F.cosine_similarity(vectors.float(), given.float(), dim=1)
        return self._weight * (1 - gathered(likeness).mean())
