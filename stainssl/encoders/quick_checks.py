"""Checks of networks and weights without importing torch and timm, which takes seconds.

Names are looked up in the source text of timm's modules; weights files are only checked for
completeness. What passes here loads; `stainssl.cohort.encoder_checks` decides about the rest.
"""

from __future__ import annotations

import json
import re
import zipfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from stainssl.encoders import recipes
from stainssl.encoders.recipes import EncoderRecipe
from stainssl.encoders.weights import ADAPTER, FILE, HUB, LOCAL, REVISION, TIMM, read_source


@lru_cache(maxsize=1)
def _architectures() -> dict[str, str]:
    """Source text of the module of each timm network, by name; empty if timm is not installed."""
    found = find_spec("timm")
    if found is None or found.origin is None:
        return {}
    files = (Path(found.origin).parent / "models").glob("*.py")
    texts = (file.read_text(encoding="utf-8") for file in files)
    registered = re.compile(r"^@register_model\s+def (\w+)\(", re.M)
    return {name: text for text in texts for name in registered.findall(text)}


def _module(name: str) -> str:
    """Source text of the module of a network, named with or without a tag; empty if unknown."""
    return _architectures().get(name.partition(".")[0], "")


def is_architecture(name: str) -> bool:
    """Whether timm registers a network of this name and, if the name has a tag, the tag.

    Args:
        name: `ARCHITECTURE` or `ARCHITECTURE.TAG`.
    """
    return bool(_module(name)) and ("." not in name or _entry(name) is not None)


def has_weights(name: str) -> bool:
    """Whether timm has pretrained weights for a network of this name.

    Args:
        name: `ARCHITECTURE` or `ARCHITECTURE.TAG`.
    """
    entry = _entry(name) if _module(name) else None
    is_had = re.compile(r"""^[^#\n]*\b(hf_hub_id|url)=['"]\w""", re.M)
    return entry is not None and is_had.search(entry) is not None


def _entry(name: str) -> str | None:
    """The module's entry for a name's weights; for a name without a tag, the first entry."""
    tag = "" if "." in name else r"(?:\.[\w.-]+)?"
    start = re.search(rf"""^ +['"]{re.escape(name)}{tag}['"]:""", _module(name), re.M)
    if start is None:
        return None
    behind = _module(name)[start.end() :]
    return re.split(r"""^ +['"][\w.-]+['"]:|^}""", behind, maxsplit=1, flags=re.M)[0]


def takes_side(architecture: str, side_px: int) -> bool:
    """Whether a network certainly takes images of a side: any, or a multiple of its patches."""
    if patch := re.search(r"patch(\d+)", architecture):
        return side_px % int(patch[1]) == 0
    return "fixed_input_size" not in _module(architecture)


def is_whole(file: Path) -> bool:
    """Whether a weights file is complete; False also for torch's format before version 1.6.

    Args:
        file: safetensors, whose length must agree with its header, or torch's, which is a zip
            archive since version 1.6.
    """
    try:
        if file.suffix != ".safetensors":
            return zipfile.is_zipfile(file)
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            size = file.stat().st_size
            header = json.loads(opened.read(length)) if 8 + length <= size else {}
        ends = [one["data_offsets"][1] for key, one in header.items() if key != "__metadata__"]
        return bool(ends) and 8 + length + max(ends) == size
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def loads(source: str) -> bool:
    """Whether a source certainly loads, or can only be checked by downloading it.

    Args:
        source: as accepted by `stainssl.encoders.loading.load`.
    """
    weights, keys = read_source(source)
    if found := recipes.find(source):
        return _recipe_loads(found[1], found[2])
    if weights.startswith(HUB):
        return weights.count("/") == 1
    if FILE in weights or REVISION in keys:
        return False
    return has_weights(weights.removeprefix(TIMM)) or _folder(weights) is not None


def _recipe_loads(recipe: EncoderRecipe, given: str | None) -> bool:
    if given is not None or recipe.is_own:  # only the network itself shows whether they fit
        return False
    if recipe.package:
        return recipe.package_folder is not None
    return (file := recipe.cached) is None or is_whole(file)


def _folder(weights: str) -> Path | None:
    """The folder of a complete network in timm's format; None for an adapter or anything else."""
    folder = Path(weights.removeprefix(LOCAL))
    is_timms = (folder / "config.json").is_file() and is_whole(folder / "model.safetensors")
    return folder if is_timms and not (folder / ADAPTER).is_file() else None


def architecture_of(source: str) -> str:
    """timm name of a source's network; empty if it cannot be determined."""
    weights, _ = read_source(source)
    if found := recipes.find(source):
        return found[1].architecture
    if folder := _folder(weights):
        text = (folder / "config.json").read_text(encoding="utf-8")
        return str(json.loads(text).get("architecture", ""))
    return "" if weights.startswith(HUB) else weights.removeprefix(TIMM).partition(FILE)[0]
