"""Save a trained network as a folder: all weights in timm's format, or an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from timm.models._pretrained import filter_pretrained_cfg
from torch import nn

from stainssl import __version__
from stainssl.encoders import adapters
from stainssl.encoders.weights import STAIN_PROFILE
from stainssl.stain import StainProfile
from stainssl.stain.targets import profile_to_json
from stainssl.stores.atomic import replacing

TIMM_USE = (
    "import timm\n"
    'model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True, num_classes=0)\n'
)
ADAPTER_USE = (
    'from stainssl.encoders.loading import load\nencoder = load("local-dir:THIS_FOLDER")\n'
)


def save_local_dir(
    model: nn.Module,
    path: Path,
    *,
    backbone: str,
    input_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    model_args: Mapping[str, Any],
    card: Mapping[str, Any],
    stain_profile: StainProfile | None = None,
) -> None:
    """Save a timm network as a folder for `timm.create_model("local-dir:…")`.

    Args:
        model: a timm network without a classifier; its `pretrained_cfg` is replaced.
        path: the folder; an existing one is replaced once the new one is complete.
        backbone: timm name of the architecture.
        input_size: side of the training images in px.
        mean, std: of RGB in [0, 1], as in training.
        model_args: further arguments of the architecture.
        card: rows of the table in the model card.
        stain_profile: that tiles are normalized to first, by `load` but not by timm.
    """
    model.pretrained_cfg = _trained_config(model, backbone, input_size, mean, std)  # type: ignore[assignment]
    # safetensors stores contiguous tensors only; channels-last ones are not.
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with replacing(path) as made:
        save_for_hf(model, str(made), model_args=dict(model_args), safe_serialization=True)
        _write_notes(made, path.parent.name, backbone, card, stain_profile)


def save_adapter(
    peft_model: Any,
    path: Path,
    base: adapters.Base,
    *,
    backbone: str,
    input_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    card: Mapping[str, Any],
    stain_profile: StainProfile | None = None,
) -> None:
    """Save an adapter as a folder for `load` and peft.

    Args:
        peft_model: a network with adapters, as returned by `pretrain.lora.adapt`.
        path: the folder; an existing one is replaced once the new one is complete.
        base: the weights that the adapter modifies.
        backbone, input_size, mean, std, card, stain_profile: as in `save_local_dir`.
    """
    model = peft_model.get_base_model()
    own = filter_pretrained_cfg(_trained_config(model, backbone, input_size, mean, std))
    config = {"architecture": own.pop("architecture"), "num_classes": 0, "pretrained_cfg": own}
    peft_model.peft_config["default"].base_model_name_or_path = base.source
    with replacing(path) as made:
        peft_model.save_pretrained(str(made), save_embedding_layers=False)
        adapters.settle_config(made)
        (made / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        adapters.write_base(made, base)
        _write_notes(made, path.parent.name, backbone, card, stain_profile, adapter_to=base.source)


def _trained_config(
    model: nn.Module,
    backbone: str,
    input_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> dict[str, Any]:
    """timm's `pretrained_cfg` of a network after training."""
    config = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    config |= {
        "architecture": backbone.split(".")[0], "input_size": (3, input_size, input_size),
        "mean": mean, "std": std, "interpolation": "bilinear", "crop_pct": 1.0, "num_classes": 0,
    }  # fmt: skip
    stale = ("tag", "hf_hub_id", "url", "file", "license", "origin_url", "paper_name", "paper_ids",
             "notes", "test_input_size", "test_crop_pct", "pool_size", "label_names")  # fmt: skip
    return {k: v for k, v in config.items() if k not in stale}


def _write_notes(
    made: Path,
    name: str,
    backbone: str,
    card: Mapping[str, Any],
    stain_profile: StainProfile | None,
    adapter_to: str | None = None,
) -> None:
    """Write the stain profile, if there is one, and the model card into a model's folder."""
    if stain_profile is not None:
        content = json.dumps(profile_to_json(stain_profile), indent=1)
        (made / STAIN_PROFILE).write_text(content + "\n", encoding="utf-8")
    text = _card(name, backbone, card, adapter_to)
    (made / "README.md").write_text(text, encoding="utf-8")


def _card(name: str, backbone: str, card: Mapping[str, Any], adapter_to: str | None = None) -> str:
    versions = {"stainssl": __version__} | {p: version(p) for p in ("torch", "timm")}
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in {**card, **versions}.items())
    library, what, use = "timm", f"A {backbone}", TIMM_USE
    if adapter_to is not None:
        library, use = "peft", ADAPTER_USE
        what = f"A low-rank adapter to {adapter_to}, a {backbone},"
    return (
        f"---\nlibrary_name: {library}\ntags: [histopathology, self-supervised]\n---\n# {name}\n\n"
        f"{what} pretrained without labels on H&E tiles. For research, not for diagnosis.\n\n"
        f"```python\n{use}```\n\n"
        f"| | |\n|---|---|\n{rows}\n"
    )


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
