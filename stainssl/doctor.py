"""Report of installed packages, readers by format, the device, and problems."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from stainssl import __version__
from stainssl.extras import (
    EXTRAS,
    advice,
    extra_of,
    how_to_install,
    is_installed,
    is_missing,
    opencv_problem,
)
from stainssl.slides.readers import FORMATS, ON_DEMAND

PACKAGES = (
    "torch", "torchvision", "timm", "lightning", "zarr", "pandas", "openslide-python",
    "openslide-bin", "fastslide", "tiatoolbox", "snakemake", "snakemake-executor-plugin-slurm",
)  # fmt: skip


def _packages() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            library = name.split("-")[0]
            word = "not installed" if extra_of(library) else "MISSING"
            yield name, f"{word}: {how_to_install(library if extra_of(library) else name)}"


def _extra(name: str) -> str:
    return f"not installed: {advice(name)}" if is_missing(name) else "installed"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"cuda: {', '.join(names)}"
    return f"cpu, {os.cpu_count()} cores (torch {torch.__version__} finds no CUDA device)"


def _openslide() -> str:
    try:
        import openslide
    except (ImportError, OSError) as error:
        return f"WRONG: OpenSlide cannot be loaded ({error}): pip install openslide-bin"
    return f"OpenSlide {openslide.__library_version__}"


def _opencv() -> str:
    problem = opencv_problem()
    return f"WRONG: {problem}" if problem else "can be imported"


def _reader(name: str) -> str:
    """Whether the library of a reader can be imported."""
    if not is_installed(name):
        word = "not installed" if extra_of(name) else "MISSING"
        return f"{word}: {how_to_install(name)}"
    try:
        import_module(name)
    except (ImportError, OSError) as error:
        return f"WRONG: {name} cannot be imported ({error}): {how_to_install(name)}"
    return "can be imported"


def _encoders() -> str:
    from stainssl.encoders import recipes, slide_recipes
    from stainssl.encoders.listing import place

    tiles = [name for name, recipe in recipes.RECIPES.items() if place(recipe)]
    slides = [name for name, recipe in slide_recipes.RECIPES.items() if place(recipe)]
    return ", ".join([*tiles, *slides]) or "none"


def _hub() -> str:
    """Whether weights can be downloaded from the hub, and to which folder."""
    from huggingface_hub import constants

    from stainssl.encoders import hub

    if hub.is_offline():
        return f"HF_HUB_OFFLINE is set: only the cache in {constants.HF_HUB_CACHE}"
    found = (
        "token found" if hub.has_token() else "no token (needed for gated models): hf auth login"
    )
    return f"{found}; downloaded to {constants.HF_HUB_CACHE}"


def report() -> int:
    """Print the report; return 1 if something is missing or wrong, otherwise 0."""
    disk = shutil.disk_usage(".")
    lines = [
        ("stainssl", __version__),
        ("python", platform.python_version()),
        *_packages(),
        *((f"extra {name}", _extra(name)) for name in EXTRAS),
        ("openslide library", _openslide()),
        ("opencv", _opencv()),
        *((f"reader {name}", _reader(name)) for name in ON_DEMAND),
        *((f"read by {reader}", formats) for formats, reader in FORMATS.items()),
        ("one image file as one tile", "PNG, JPEG, TIFF, BMP, WebP: kind: patches"),
        ("device", _device()),
        ("encoders that can be loaded now", _encoders()),
        ("encoders of the hub", _hub()),
        ("free disk here", f"{disk.free / 1e9:.0f} GB"),
    ]
    for name, found in lines:
        print(f"{name:32} {found}")
    wrong = [name for name, found in lines if found.startswith(("MISSING", "WRONG"))]
    print(f"\nproblems: {', '.join(wrong)}" if wrong else "\nno problems found")
    return int(bool(wrong))
