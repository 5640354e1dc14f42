"""Given weights as a config names them: which files they are, and whether these have changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from stainssl.runtime.content import content_key

LOCAL, HUB, TIMM = "local-dir:", "hf-hub:", "timm:"
FILE = "@"  # ARCHITECTURE@FILE, RECIPE@FILE, RECIPE@FOLDER or hf-hub:OWNER/NAME@REVISION
RECIPE, REVISION = "recipe", "revision"  # of what stands behind weights in a source
ONLY_TOLD = ("mpp", "tile_px", "license", "gated")  # of a recipe, which decide no vector
Pooling = Literal[
    "cls", "mean", "cls+mean", "average", "two scales", "attention", "attention without bias",
    "projection",
]  # fmt: skip
Layout = Literal["timm", "transformers", "ordered", "swin", "keep", "conch", "conch-v1.5", "musk"]
Precision = Literal["half", "32"]
ADAPTER = "adapter_model.safetensors"  # in the folder of an adapter to other weights
STANDARD = "stain.json"  # in a model's folder: the stain that its tiles are normalized to
SAMPLES = 16  # blocks of a file by which weights are told from others


def written(
    weights: str, recipe: Mapping[str, Any] | None = None, revision: str | None = None
) -> str:
    """A source: weights, and behind them, as JSON, the recipe and the revision that go with them.

    So one text, in a job, a store or an adapter's `base.json`, names a network completely.
    """
    keys = {RECIPE: recipe, REVISION: revision}
    given = {key: value for key, value in keys.items() if value is not None}
    return f"{weights} {json.dumps(given, sort_keys=True)}" if given else weights


def read_source(source: str) -> tuple[str, dict[str, Any]]:
    """The weights of a source, and its recipe and revision where it has them: see `written`."""
    found = re.fullmatch(r"(.*?) (\{\"re(?:cipe|vision)\": .*\})", source, re.DOTALL)
    return (found[1], json.loads(found[2])) if found else (source, {})


def weight_files(source: str) -> list[Path]:
    """The local files of a source's weights, sorted; none for weights of a hub."""
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
    """What decides the vectors of a source: its name, recipe and revision, files and size.

    Of local files it is `content_key` of sixteen blocks, so that gigabytes cost a megabyte of
    reading; a time stamp plays no part, since copying changes it.
    """
    weights, keys = read_source(source)
    recipe = {k: v for k, v in keys.get(RECIPE, {}).items() if k not in ONLY_TOLD}
    files = [path for path in weight_files(weights) if path.is_file()]
    digests = [f"{path.name} {content_key(path, SAMPLES).hex()[:16]}" for path in files]
    size = [f"at {input_size} px"] if input_size else []
    return " ".join([written(weights, recipe or None, keys.get(REVISION)), *digests, *size])
