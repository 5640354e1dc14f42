"""Sources of weights as named in a config: their files, and an identity that changes with them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from stainssl.runtime.content import content_key

LOCAL, HUB, TIMM = "local-dir:", "hf-hub:", "timm:"
FILE = "@"  # ARCHITECTURE@FILE, RECIPE@FILE, RECIPE@FOLDER or hf-hub:OWNER/NAME@REVISION
RECIPE, REVISION = "recipe", "revision"  # keys of the JSON after the weights in a source
METADATA_KEYS = ("mpp", "tile_px", "license", "gated")  # of a recipe; no embedding depends on them
Pooling = Literal[
    "cls", "mean", "cls+mean", "average", "two scales", "attention", "attention without bias",
    "projection",
]  # fmt: skip
Layout = Literal["timm", "transformers", "ordered", "swin", "keep", "conch", "conch-v1.5", "musk"]
Precision = Literal["half", "32"]
ADAPTER = "adapter_model.safetensors"  # in the folder of an adapter to other weights
STAIN_PROFILE = "stain.json"  # in a model's folder: the stain profile that tiles are normalized to
SAMPLES = 16  # blocks of a weights file that identify it


def written(
    weights: str, recipe: Mapping[str, Any] | None = None, revision: str | None = None
) -> str:
    """Compose a source: the weights, followed by their recipe and revision as JSON.

    One text thus names a network completely: in a job, a store or an adapter's `base.json`.
    """
    keys = {RECIPE: recipe, REVISION: revision}
    given = {key: value for key, value in keys.items() if value is not None}
    return f"{weights} {json.dumps(given, sort_keys=True)}" if given else weights


def read_source(source: str) -> tuple[str, dict[str, Any]]:
    """Split a source into its weights and a dict of its recipe and revision; see `written`."""
    found = re.fullmatch(r"(.*?) (\{\"re(?:cipe|vision)\": .*\})", source, re.DOTALL)
    return (found[1], json.loads(found[2])) if found else (source, {})


def weight_files(source: str) -> list[Path]:
    """Local files of a source's weights, sorted; empty for weights from the hub or timm."""
    weights, _ = read_source(source)
    if weights.startswith((HUB, TIMM)):
        return []
    if FILE in weights and not weights.startswith(LOCAL):
        folder = Path(weights.split(FILE, 1)[1])
        if not folder.is_dir():
            return [folder]
    else:
        folder = Path(weights.removeprefix(LOCAL))
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file())


def identity(source: str, input_size: int | None = None) -> str:
    """Text of all that the embeddings of a source depend on.

    It has the name, recipe, revision, files and input size. Local files are represented by
    `content_key` of sixteen blocks: one megabyte is read instead of gigabytes. Time stamps are not
    used, since copying changes them.

    Args:
        source: as accepted by `loading.load`.
        input_size: side of the network's input in px; None: that of the source.
    """
    weights, keys = read_source(source)
    recipe = {k: v for k, v in keys.get(RECIPE, {}).items() if k not in METADATA_KEYS}
    files = [path for path in weight_files(weights) if path.is_file()]
    digests = [f"{path.name} {content_key(path, SAMPLES).hex()[:16]}" for path in files]
    size = [f"at {input_size} px"] if input_size else []
    return " ".join([written(weights, recipe or None, keys.get(REVISION)), *digests, *size])
