"""Warnings about pretrained encoders that run but may be a mistake; torch is not imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

from stainssl.config import Config
from stainssl.encoders import hub, recipes, slide_recipes
from stainssl.encoders.recipes import EncoderRecipe
from stainssl.encoders.sizes import PARAMETERS_M
from stainssl.encoders.slide_recipes import SlideRecipe
from stainssl.encoders.weights import FILE, SAMPLES, read_source, weight_files
from stainssl.runtime.content import content_key
from stainssl.runtime.memory import memory_bytes

SMALLEST_DEVICE = 10**9  # bytes: smaller weights fit any device, memory is not queried
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".tar")
MPP_SLACK = 1.1  # ratio of µm/px: scanners of one magnification differ by as much


def warnings(config: Config) -> list[str]:
    """Warnings before any job starts: those of `row_warnings`, downloads and memory."""
    names = list(config.encoders)
    of_machine = (s for n in names for s in (*_download(config, n), *_memory(config, n)))
    return [*row_warnings(config, names), *of_machine]


def row_warnings(config: Config, names: Iterable[str]) -> list[str]:
    """Warnings that are also printed below a benchmark table with these encoders.

    They name encoders with the same weights, and tiles of another scale or size than in training.
    """
    given = list(names)
    return [*_twice(config, given), *(s for n in given for s in _scale(config, n))]


def _scale(config: Config, name: str) -> Iterator[str]:
    """Tiles of another scale or size than in the training of the encoder."""
    encoder = config.encoders[name]
    if (found := _recipe(encoder.source or "")) is None:
        return
    known, recipe, _ = found
    mpp = config.tilings[encoder.tiling].mpp
    if recipe.mpp and not is_trained_scale(mpp, recipe.mpp):
        trained = ", ".join(f"{one:g}" for one in recipe.mpp)
        yield (
            f"encoders.{name}: {known} was trained at {trained} µm/px, and tiling"
            f" {encoder.tiling!r} has {mpp:g}."
        )
    yield from _size(config, name, known, recipe)


def _size(
    config: Config, name: str, known: str, recipe: EncoderRecipe | SlideRecipe
) -> Iterator[str]:
    key = config.encoders[name].tiling
    size = config.tilings[key].size
    if isinstance(recipe, SlideRecipe):
        if size != recipe.tile_px:
            yield (
                f"encoders.{name}: {known} was trained on vectors of tiles of {recipe.tile_px} px,"
                f" and tiling {key!r} has {size} px."
            )
    elif config.encoders[name].input_size is None and recipe.mpp and size not in recipe.tile_sizes:
        side = recipe.resize_px or recipe.input_px
        yield (
            f"encoders.{name}: {known} was trained on tiles of {recipe.tile_px} px; tiling"
            f" {key!r}'s tiles of {size} px are resized to {side} px, which changes their scale."
        )


def is_trained_scale(mpp: float, trained: Iterable[float]) -> bool:
    """Whether `mpp` is close to one of the scales of training, both in µm/px."""
    return any(1 / MPP_SLACK < mpp / one < MPP_SLACK for one in trained)


def _recipe(source: str) -> tuple[str, EncoderRecipe | SlideRecipe, str | None] | None:
    return recipes.find(source) or slide_recipes.find(source)


def _twice(config: Config, names: list[str]) -> Iterator[str]:
    """Pairs of encoders with the same weights."""
    given = [
        (name, encoder, *_identified(encoder.source or ""))
        for name, encoder in ((name, config.encoders[name]) for name in names)
        if encoder.weights is not None
    ]
    for (one, first, network, content), (two, second, other, same) in combinations(given, 2):
        if content != same or (content is None and network != other):
            continue
        rest = [e.model_dump_json(exclude={"weights"}) for e in (first, second)]
        if _published_as(network) != _published_as(other):
            yield (
                f"encoders.{one} and encoders.{two} read the same file as {network} and as {other}:"
                " one of them uses the preprocessing of another network."
            )
        elif network == other and rest[0] == rest[1]:
            yield (
                f"encoders.{one} and encoders.{two} have the same weights and settings: two rows"
                " for one network. Leave one out."
            )


def _published_as(network: str) -> str:
    """Address of a recipe's weights, which recipes may share; for other networks the name."""
    every: dict[str, EncoderRecipe | SlideRecipe] = {**recipes.RECIPES, **slide_recipes.RECIPES}
    return every[network].address if network in every else network


def _identified(source: str) -> tuple[str, bytes | None]:
    """Name of a pretrained network, and a digest of its weights file if it is local."""
    found = _recipe(source)
    name = found[0] if found else read_source(source)[0].partition(FILE)[0]
    files = [f for f in weight_files(source) if f.is_file() and f.suffix != ".json"]
    if found and found[2] and Path(found[2]).is_dir():
        files = [f for f in (Path(found[2]) / n for n in found[1].files) if f.is_file()][:1]
    return name, content_key(files[0], SAMPLES) if files else None


def _download(config: Config, name: str) -> Iterator[str]:
    """Weights that are not on this machine and cannot be downloaded."""
    if sentence := download_problem(config.encoders[name].source or ""):
        yield f"encoders.{name}: {sentence}"


def download_problem(source: str) -> str:
    """Why weights of the hub cannot be downloaded: offline, or gated without a token; or ""."""
    found = _recipe(source)
    if found is None or found[2] is not None or not found[1].repository or found[1].cached:
        return ""
    known, recipe, _ = found
    if hub.is_offline():
        return (
            f"the weights of {known} are not in this machine's hub cache, and"
            f" HF_HUB_OFFLINE is set: run `hf download {recipe.repository}` on a machine with"
            f" network access and copy the cache, or set weights: {known}@FOLDER."
        )
    if recipe.gated and not hub.has_token():
        return (
            f"the weights of {known} are gated and not in this machine's hub cache,"
            f" and there is no token: accept the license on {recipe.address}, and run `hf auth"
            f" login`, or set weights: {known}@FOLDER."
        )
    return ""


def _memory(config: Config, name: str) -> Iterator[str]:
    if sentence := memory_problem(config.encoders[name].source or ""):
        yield f"encoders.{name}: {sentence}"


def memory_problem(source: str) -> str:
    """A message if weights do not fit into the memory of this machine's device; or ""."""
    needed = weights_bytes(source)
    if needed < SMALLEST_DEVICE or needed <= (there := memory_bytes()):
        return ""
    found = _recipe(source)
    name = found[0] if found else read_source(source)[0]
    return (
        f"the weights of {name} alone need {needed / 1e9:.1f} GB in 32 bits, and this device has"
        f" {there / 1e9:.1f} GB: use one with more memory."
    )


def weights_bytes(source: str) -> int:
    """Size of weights in float32 in bytes, as far as known without a download; else 0."""
    found = _recipe(source)
    if found and found[0] in PARAMETERS_M:
        return 4 * 10**6 * PARAMETERS_M[found[0]]
    files = weight_files(source)
    if found and (cached := found[1].cached) and found[2] is None:
        files = [cached]
    return max((f.stat().st_size for f in files if f.suffix in WEIGHTS and f.is_file()), default=0)
