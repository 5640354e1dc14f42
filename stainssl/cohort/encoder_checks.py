"""What can be known of an encoder's network before a job: names, files, headers, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch

from stainssl.config import REFERENCE, Config, Encoder
from stainssl.encoders import adapters, recipes, tensors
from stainssl.encoders.blocks import last_blocks
from stainssl.encoders.initial import architecture_of, is_saved_by_timm
from stainssl.encoders.loading import (
    FILE,
    HUB,
    LOCAL,
    STANDARD,
    TIMM,
    build,
    nearest_network,
    packaged,
    weights_file,
    whole_patches,
)
from stainssl.encoders.recipes import EncoderRecipe
from stainssl.encoders.standards import standard
from stainssl.errors import StainsslError

MPP_SLACK = 1.1  # of a ratio of µm/px: scanners of one magnification differ by so much


def problems(config: Config) -> Iterator[str]:
    """Sentences about backbones, given weights and `init` that no job could load.

    Of files only names, shapes and headers are read; nothing is downloaded.
    """
    for name, encoder in config.encoders.items():
        for key, sentence in _problems(config, name, encoder):
            yield f"encoders.{name}.{key}: {sentence}"
    yield from _tuned_blocks(config)


def _problems(config: Config, name: str, encoder: Encoder) -> Iterator[tuple[str, str]]:
    if encoder.weights is not None:
        yield from (("weights", found) for found in source_problems(encoder.weights))
        yield from (("preprocess", found) for found in _standard(encoder))
    elif encoder.init is not None:
        if config.initial_run(config.runs_of(name)[0]) is None:
            yield from (("init", found) for found in source_problems(encoder.init))
        if encoder.tune != "lora" or encoder.lora.merge:
            yield from (("init", found) for found in _unsaved(_start(config, name)))
        count = encoder.last_blocks
        yield from (("tune", found) for found in _blocks(count, _start(config, name)))
    elif encoder.method is not None:
        size = encoder.input_size or config.tilings[encoder.tiling].size
        yield from (("backbone", found) for found in _backbone(encoder.architecture, size))


def _backbone(name: str, input_size: int) -> Iterator[str]:
    if not timm.is_model(name.split(".")[0]):
        yield f"{name!r} is not a timm name{nearest_network(name)}"
        return
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        own: Any = model.pretrained_cfg
        if own.get("fixed_input_size"):
            whole_patches(model, input_size)
    except StainsslError as error:
        yield str(error)
    except Exception:  # some families make tensors with values as they are built: a job will tell
        return


def _unsaved(source: str) -> Iterator[str]:
    found = recipes.find(source)
    if found and not is_saved_by_timm(found[0]):
        yield (
            f"{found[0]} can be embedded with, and not be trained further but by an adapter (tune: "
            "lora): see docs/encoders.md."
        )


def _start(config: Config, name: str) -> str:
    """The weights that an encoder, or the one that it starts from, begins with."""
    run = config.runs_of(name)[0]
    while (other := config.initial_run(run)) is not None:
        run = other
    return run.encoder.weights or run.encoder.init or run.encoder.architecture


def _tuned_blocks(config: Config) -> Iterator[str]:
    """Likewise of the encoders that a benchmark fine-tunes on a task."""
    pairs = [
        (task, encoder)
        for benchmark in config.benchmarks.values()
        for task in benchmark.tasks
        for encoder in benchmark.encoders
        if config.tasks[task].is_fine_tuned
    ]
    for task, encoder in dict.fromkeys(pairs):
        count = config.tasks[task].fine_tune.last_blocks
        for sentence in _blocks(count, _start(config, encoder)):
            yield f"tasks.{task}.fine_tune.tune, of encoders.{encoder}: {sentence}"


def _blocks(count: int | None, source: str) -> Iterator[str]:
    """Whether the network that training starts from has as many blocks as are to be trained."""
    if count is None or source.startswith(HUB):
        return
    try:
        architecture, args = architecture_of(source)
        with torch.device("meta"):
            model = timm.create_model(architecture, num_classes=0, **args)
        last_blocks(model, count)
    except StainsslError as error:
        yield str(error)
    except Exception:  # what keeps it from loading is told of `init`, or by a job
        return


def _standard(encoder: Encoder) -> Iterator[str]:
    """Whether the file of a profile that given weights' tiles are normalized to is one."""
    own = Path((encoder.weights or "").removeprefix(LOCAL)) / STANDARD
    if encoder.preprocess and own.is_file():
        yield f"{own} is what tiles are normalized to already: leave it out."
    for name in encoder.named_stains:
        try:
            standard(encoder.normalizers[0], None if name == REFERENCE else Path(name))
        except StainsslError as error:
            yield str(error)


def source_problems(source: str) -> Iterator[str]:
    """Sentences about weights that cannot be loaded; none where a download has to tell.

    Args:
        source: as `loading.load` takes it.
    """
    name, _, file = source.partition(FILE)
    plain = name.removeprefix(TIMM)
    try:
        if found := recipes.find(source):
            yield from _recipe(*found)
        elif recipes.canonical(name) in recipes.ELSEWHERE:
            yield f"timm has no network of {name}: import its vectors (features: trident:FOLDER)."
        elif file and timm.is_model(plain.split(".")[0]):
            yield from _file(plain, Path(file))
        elif source.startswith(HUB):
            yield from _hub(source)
        elif not timm.is_model(plain.split(".")[0]):
            yield from _folder(Path(source.removeprefix(LOCAL)), source)
    except StainsslError as error:
        yield str(error)


def _hub(source: str) -> Iterator[str]:
    if len(source.removeprefix(HUB).split("/")) != 2:
        yield f"{source!r}: a model of the hub is written hf-hub:OWNER/NAME."


def _file(architecture: str, file: Path) -> Iterator[str]:
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=0)
    found = tensors.fit(model.state_dict(), tensors.read(file, "meta"))
    if problem := found.problem(str(file), architecture):
        yield problem


def _recipe(name: str, recipe: EncoderRecipe, given: str | None) -> Iterator[str]:
    if given is None:
        if recipe.package:
            packaged(name, recipe)
        return
    file = weights_file(name, recipe, given)
    if recipe.needs_config:  # read with its weights
        return
    with torch.device("meta"):
        model = build(recipe)
        weights = tensors.by_timm_names(tensors.read(file, "meta"), recipe.layout, model)
    if problem := tensors.fit(model.state_dict(), weights).problem(str(file), name):
        yield problem


def _folder(folder: Path, source: str) -> Iterator[str]:
    if adapters.is_adapter(folder):
        tensors.read(folder / adapters.WEIGHTS, "meta")
        base = adapters.read_base(folder).source
        yield from (f"{folder} holds an adapter to {base}: {s}" for s in source_problems(base))
    elif not (folder / "config.json").is_file():
        yield (
            f"{source!r} is no encoder of `stainssl encoders`, no timm name, and no folder with "
            f"config.json and model.safetensors{nearest_network(source)}"
        )
    elif not (folder / "model.safetensors").is_file() and not list(folder.glob("*.bin")):
        yield f"{folder} has a config.json and no model.safetensors: was the download whole?"
    elif (folder / "model.safetensors").is_file():
        tensors.read(folder / "model.safetensors", "meta")  # half a file is a StainsslError


def warnings(config: Config) -> Iterator[str]:
    """Sentences about tiles of another scale or size than an encoder was trained at."""
    for name, encoder in config.encoders.items():
        found = recipes.find(encoder.weights or encoder.init or "")
        if found is None or not found[1].mpp:
            continue
        recipe, tiling = found[1], config.tilings[encoder.tiling]
        if not any(1 / MPP_SLACK < tiling.mpp / mpp < MPP_SLACK for mpp in recipe.mpp):
            trained = ", ".join(f"{mpp:g}" for mpp in recipe.mpp)
            yield (
                f"encoders.{name}: {found[0]} was trained at {trained} µm/px, and tiling "
                f"{encoder.tiling!r} has {tiling.mpp:g}."
            )
        sizes = (recipe.input_px, recipe.resize_px or recipe.input_px, recipe.tile_px, 256)
        if encoder.input_size is None and tiling.size not in sizes:
            yield (
                f"encoders.{name}: {found[0]} was trained on tiles of {recipe.tile_px} px; "
                f"tiling {encoder.tiling!r}'s tiles of {tiling.size} px are resized to "
                f"{recipe.resize_px or recipe.input_px} px, so that their scale changes."
            )
