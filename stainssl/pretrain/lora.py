"""Add low-rank adapters to a network for training, with peft."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel


def adapt(model: nn.Module, layers: Sequence[str], rank: int, alpha: float, seed: int) -> PeftModel:
    """Add adapters to layers of a network and freeze all other parameters.

    Embeddings do not change at first: the second factor of an adapter starts at zero.

    Args:
        model: modified in place.
        layers: names of linear layers and 1 × 1 convolutions.
        rank: of the adapters.
        alpha: the update of an adapter is scaled by alpha / rank.
        seed: of the first factors.

    Returns:
        peft's model, which can save or merge the adapters.
    """
    from peft import LoraConfig, get_peft_model  # imports transformers: seconds

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about models that are not from transformers
        # peft annotates alpha as int, but only divides by the rank.
        wanted: Any = {"r": rank, "lora_alpha": alpha, "target_modules": list(layers)}
        config = LoraConfig(bias="none", **wanted)
        return get_peft_model(model, config)
