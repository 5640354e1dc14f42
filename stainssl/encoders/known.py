"""What can be said of networks and their weights without torch and timm, which import for seconds.

timm's names are read in the text of its modules, of files of weights only that they are whole. What
is known here loads; of anything else `stainssl.cohort.encoder_checks` says whether it does.
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
    """timm's networks, each with the text of its module; none where timm is not installed."""
    found = find_spec("timm")
    if found is None or found.origin is None:
        return {}
    files = (Path(found.origin).parent / "models").glob("*.py")
    texts = (file.read_text(encoding="utf-8") for file in files)
    registered = re.compile(r"^@register_model\s+def (\w+)\(", re.M)
    return {name: text for text in texts for name in registered.findall(text)}


def _module(name: str) -> str:
    """The text of the module that registers a network, with or without a tag; else empty."""
    return _architectures().get(name.partition(".")[0], "")


def is_architecture(name: str) -> bool:
    """Whether timm registers a network of this name, and has its tag where there is one.

    Args:
        name: `ARCHITECTURE` or `ARCHITECTURE.TAG`.
    """
    return bool(_module(name)) and ("." not in name or _entry(name) is not None)


def has_weights(name: str) -> bool:
    """Whether timm has weights of a network of this name.

    Args:
        name: as `is_architecture` takes it.
    """
    entry = _entry(name) if _module(name) else None
    is_had = re.compile(r"""^[^#\n]*\b(hf_hub_id|url)=['"]\w""", re.M)
    return entry is not None and is_had.search(entry) is not None


def _entry(name: str) -> str | None:
    """What its module says of a name's weights; of a name without a tag, of the first ones."""
    tag = "" if "." in name else r"(?:\.[\w.-]+)?"
    start = re.search(rf"""^ +['"]{re.escape(name)}{tag}['"]:""", _module(name), re.M)
    if start is None:
        return None
    behind = _module(name)[start.end() :]
    return re.split(r"""^ +['"][\w.-]+['"]:|^}""", behind, maxsplit=1, flags=re.M)[0]


def takes_side(architecture: str, side_px: int) -> bool:
    """Whether a network surely takes images of a side: of any, or of whole patches."""
    if patch := re.search(r"patch(\d+)", architecture):
        return side_px % int(patch[1]) == 0
    return "fixed_input_size" not in _module(architecture)


def is_whole(file: Path) -> bool:
    """Whether a file of weights ends where its header says; False: it may still be an older kind.

    Args:
        file: safetensors, or torch's, which is a zip archive since version 1.6.
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
    """Whether a source of weights surely loads, or is one that only a download can tell of.

    Args:
        source: as `stainssl.encoders.loading.load` takes it.
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
    if given is not None or recipe.is_own:  # whether they fit its network takes that network
        return False
    if recipe.package:
        return recipe.package_folder is not None
    return (file := recipe.cached) is None or is_whole(file)


def _folder(weights: str) -> Path | None:
    """A folder of a whole network as timm writes it; an adapter is none."""
    folder = Path(weights.removeprefix(LOCAL))
    is_timms = (folder / "config.json").is_file() and is_whole(folder / "model.safetensors")
    return folder if is_timms and not (folder / ADAPTER).is_file() else None


def architecture_of(source: str) -> str:
    """The timm name of a source's network, where that can be read; else empty."""
    weights, _ = read_source(source)
    if found := recipes.find(source):
        return found[1].architecture
    if folder := _folder(weights):
        text = (folder / "config.json").read_text(encoding="utf-8")
        return str(json.loads(text).get("architecture", ""))
    return "" if weights.startswith(HUB) else weights.removeprefix(TIMM).partition(FILE)[0]


def is_whole_in_timm(source: str) -> bool:
    """Whether a timm folder surely holds a source's network, so that all of it can be trained."""
    found = recipes.find(source)
    if found is None:
        return True
    layers = [value for value in found[1].arguments.values() if isinstance(value, str)]
    return found[1].pooling in ("cls", "average") and not layers
