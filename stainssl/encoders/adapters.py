"""Low-rank adapters (LoRA, Hu et al. 2022), stored without the weights that they modify.

The folder of an adapter has `adapter_model.safetensors` and `adapter_config.json` as written by
peft, timm's `config.json` of the network, and `base.json` with the source and digest of the base
weights. Loading does not need peft: the update is added to the base weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stainssl.encoders import tensors
from stainssl.encoders.weights import ADAPTER
from stainssl.errors import StainsslError

WEIGHTS = ADAPTER
CONFIG = "adapter_config.json"
BASE = "base.json"
PREFIX = "base_model.model."  # peft's prefix of layer names
FACTORS = (".lora_A.weight", ".lora_B.weight")
PLAIN: dict[str, Any] = {  # peft's settings for which the weight update is alpha / r · B · A
    "peft_type": "LORA", "use_dora": False, "use_rslora": False, "bias": "none",
    "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": False,
}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """The base weights of an adapter.

    Attributes:
        source: as accepted by `loading.load`.
        sha256: their `loading.weights_digest`.
    """

    source: str
    sha256: str


def is_adapter(folder: Path) -> bool:
    """Whether a folder contains an adapter."""
    return (folder / WEIGHTS).is_file()


def write_base(folder: Path, base: Base) -> None:
    """Write `base.json` into the folder of an adapter."""
    (folder / BASE).write_text(json.dumps(asdict(base), indent=1) + "\n", encoding="utf-8")


def settle_config(folder: Path) -> None:
    """Sort the layers in peft's config: peft writes a set, whose order varies."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read_base(folder: Path) -> Base:
    """Read `base.json` from the folder of an adapter.

    Raises:
        StainsslError: the file is missing or invalid.
    """
    try:
        found = json.loads((folder / BASE).read_text(encoding="utf-8"))
        return Base(str(found["source"]), str(found["sha256"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StainsslError(
            f"{folder} has an adapter but no {BASE} naming its base weights "
            f"({tensors.first_line(error)}): copy the whole folder again."
        ) from error


def check_base(folder: Path, base: Base, found: str) -> None:
    """Check that weights are those that an adapter was trained on.

    Args:
        folder: of the adapter, for the message.
        base: the base weights of the adapter.
        found: `loading.weights_digest` of the weights at `base.source` on this machine.

    Raises:
        StainsslError: the digests differ.
    """
    if found != base.sha256:
        raise StainsslError(
            f"{folder} has an adapter to {base.source} with SHA-256 {base.sha256[:16]}…, but "
            f"{base.source} has {found[:16]}… here: these are other weights. Get the weights that"
            f" it was trained on; their place is the `source` in {BASE}."
        )


def digest(folder: Path) -> str:
    """SHA-256 of an adapter's tensors and the digest of its base weights."""
    found = hashlib.sha256(read_base(folder).sha256.encode())
    for name, value in sorted(tensors.read(folder / WEIGHTS).items()):
        found.update(name.encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def merge(model: nn.Module, folder: Path) -> None:
    """Add an adapter's update to the weights of its base network.

    Args:
        model: the base network, modified in place.
        folder: of the adapter.

    Raises:
        StainsslError: the adapter is not plain LoRA, or does not fit the network.
    """
    scale, own = _scale(folder), dict(model.named_parameters())
    for name, (down, up) in _factors(folder).items():
        weight = own.get(f"{name}.weight")
        shape = (len(up), down[0].numel())
        if weight is None or shape != (len(weight), weight[0].numel()):
            raise StainsslError(
                f"{folder / WEIGHTS} changes a layer {name!r} of {shape[0]} × {shape[1]} weights, "
                f"which a {type(model).__name__} of {read_base(folder).source} does not have."
            )
        weight.add_(scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape))


def _scale(folder: Path) -> float:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        scale = float(config["lora_alpha"]) / float(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StainsslError(
            f"{folder / CONFIG} is not a LoRA config ({tensors.first_line(error)}): copy the "
            "whole folder again."
        ) from error
    if strange := [k for k, value in PLAIN.items() if (config.get(k) or value) != value]:
        found = ", ".join(f"{key}: {config[key]}" for key in strange)
        raise StainsslError(f"{folder / CONFIG}: {found}: only plain LoRA is supported.")
    return scale


def _factors(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors A (r, in, …) and B (out, r, …) of each layer, float32, by layer name."""
    found = {k.removeprefix(PREFIX): v for k, v in tensors.read(folder / WEIGHTS).items()}
    layers = sorted({name.partition(".lora_")[0] for name in found})
    strange = set(found) ^ {name + end for name in layers for end in FACTORS}
    if strange:
        raise StainsslError(
            f"{folder / WEIGHTS}: {min(strange)!r} is missing or unknown: only plain LoRA, with "
            "two factors per layer, is supported."
        )
    return {n: (found[n + FACTORS[0]].float(), found[n + FACTORS[1]].float()) for n in layers}
