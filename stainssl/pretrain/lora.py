"""Low-rank adapters in a network that is to be trained, by the library peft."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel


def adapt(model: nn.Module, layers: Sequence[str], rank: int, alpha: float, seed: int) -> PeftModel:
    """Put adapters into layers of a network and freeze all else.

    The network's vectors are what they were: the second factor of an adapter starts at zero.

    Args:
        model: changed in place.
        layers: names of linear layers and 1 × 1 convolutions.
        rank: of the adapters.
        alpha: a change counts alpha / rank times.
        seed: of the first factors.

    Returns:
        What saves the adapters, or merges them.
    """
    from peft import LoraConfig, get_peft_model  # imports transformers: seconds

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of models that are not transformers'
        # peft says int, and divides.
        wanted: Any = {"r": rank, "lora_alpha": alpha, "target_modules": list(layers)}
        config = LoraConfig(bias="none", **wanted)
        return get_peft_model(model, config)
