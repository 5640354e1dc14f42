"""Checks of an encoder's network before any job starts: names, files, tensor headers, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_arch_pretrained_cfgs
from torch import nn

from stainssl.cohort.sheet_file import shown
from stainssl.config import REFERENCE, Config, Encoder, nearest
from stainssl.encoders import adapters, recipes, slide_encoders, slide_recipes, tensors
from stainssl.encoders.blocks import last_blocks
from stainssl.encoders.initial import architecture_of
from stainssl.encoders.loading import (
    FILE,
    HUB,
    LOCAL,
    STAIN_PROFILE,
    TIMM,
    build_network,
    check_length,
    finished,
    nearest_network,
    packaged,
    set_input_size,
    vector_length,
    weights_file,
    whole_patches,
)
from stainssl.encoders.recipes import EncoderRecipe
from stainssl.encoders.slide_recipes import SlideRecipe, slide_encoder_message
from stainssl.encoders.stain_profiles import stain_profile
from stainssl.encoders.weights import REVISION, read_source
from stainssl.errors import StainsslError

RESIZED = 1.5  # a larger change of tile size shows other structures than in training


def problems(config: Config) -> Iterator[str]:
    """Yield a message for each `backbone`, `weights` or `init` that no job could load.

    Only names, shapes and headers of files are read; nothing is downloaded.
    """
    for name, encoder in config.encoders.items():
        for key, sentence in _problems(config, name, encoder):
            yield f"encoders.{name}.{key}: {sentence}"
    yield from _tuned_blocks(config)


def _problems(config: Config, name: str, encoder: Encoder) -> Iterator[tuple[str, str]]:
    if encoder.vectors is not None:
        yield from _of_slides(config, encoder)
    elif encoder.weights is not None:
        yield from (("weights", found) for found in source_problems(encoder.source or ""))
        if encoder.input_size:
            found = _side(encoder.source or "", encoder.input_size)
            yield from (("input_size", sentence) for sentence in found)
        yield from (("preprocess", found) for found in _stain_preprocessing(encoder))
    elif encoder.init is not None:
        yield from _continued(config, name, encoder)
    elif encoder.method is not None:
        size = encoder.input_size or config.tilings[encoder.tiling].size
        yield from (("backbone", found) for found in _backbone(encoder.architecture, size))


def _continued(config: Config, name: str, encoder: Encoder) -> Iterator[tuple[str, str]]:
    """Problems of continuing training from given weights (`init`)."""
    start = config.start_of(name)
    if config.initial_run(config.runs_of(name)[0]) is None:
        yield from (("init", found) for found in source_problems(encoder.source or ""))
    if encoder.tune != "lora" or encoder.lora.merge:
        yield from (("init", found) for found in _unsaved(start))
    yield from (("backbone", found) for found in _another(encoder.backbone, start))
    side = encoder.input_size or config.tilings[encoder.tiling].size
    yield from (("input_size", found) for found in _side(start, side))
    yield from (("tune", found) for found in _blocks(encoder.last_blocks, start))


def _backbone(name: str, input_size: int) -> Iterator[str]:
    if not timm.is_model(name.split(".")[0]):
        yield f"{name!r} is not a timm name{nearest_network(name)}"
        return
    if "." in name and (problem := _unknown_tag(name, needs_weights=False)):
        yield problem
        return
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        own: Any = model.pretrained_cfg
        if own.get("fixed_input_size"):
            whole_patches(model, input_size)
    except StainsslError as error:
        yield str(error)
    except Exception:  # some families compute values when built: left to the job
        return


def _unknown_tag(name: str, needs_weights: bool = True) -> str | None:
    """A message if timm has the network but not the tag; None for deprecated names."""
    every = get_arch_pretrained_cfgs(name.split(".")[0])
    known = [one for one, cfg in every.items() if cfg.has_weights or not needs_weights]
    if not every or name in known or (needs_weights and timm.is_model_pretrained(name)):
        return None
    return f"timm has no weights {name!r}; weights of that network: {shown(known) or 'none'}."


def _network(source: str) -> nn.Module | None:
    """The network of a source on the meta device; None if it is only known after a download.

    None also if it cannot be built, which is reported for `weights` or `init`, or by the job: some
    families compute values when they are built.
    """
    if source.startswith(HUB) and recipes.find(source) is None:
        return None
    try:
        architecture, args = architecture_of(source)
        with torch.device("meta"):
            return timm.create_model(architecture, num_classes=0, **args)
    except Exception:
        return None


def _another(backbone: str | None, source: str) -> Iterator[str]:
    """Message if `backbone` is not the network of the weights that training starts from."""
    if backbone is not None and (model := _network(source)) is not None:
        own: Any = model.pretrained_cfg
        if own["architecture"] != backbone.split(".")[0]:
            yield f"{source} is a {own['architecture']}: leave `backbone` out."


def _side(source: str, side_px: int) -> Iterator[str]:
    """Message if a source's network does not accept images of a side in px."""
    if (model := _network(source)) is None:
        return
    try:
        set_input_size(model, side_px)
    except StainsslError as error:
        yield str(error)
    except Exception:  # some networks need values, which are absent here: left to the job
        return


def _unsaved(source: str) -> Iterator[str]:
    found = recipes.find(source)
    if found and not found[1].is_saved_by_timm:
        yield (
            f"{found[0]} can be used for embedding, but be trained further only with an"
            " adapter (tune: lora): see docs/encoders.md."
        )


def _tuned_blocks(config: Config) -> Iterator[str]:
    """Messages on `last_blocks` of the encoders that a benchmark fine-tunes on a task."""
    pairs = [pair for pair in config.benchmarked() if config.tasks[pair[0]].is_fine_tuned]
    for task, encoder in pairs:
        count = config.tasks[task].fine_tune.last_blocks
        for sentence in _blocks(count, config.start_of(encoder)):
            yield f"tasks.{task}.fine_tune.tune, of encoders.{encoder}: {sentence}"


def _of_slides(config: Config, encoder: Encoder) -> Iterator[tuple[str, str]]:
    """Problems of a slide encoder: unknown name, weights that do not fit, wrong tile encoder."""
    if encoder.weights is None or encoder.vectors not in config.encoders:
        return
    if (found := slide_recipes.find(encoder.source or "")) is None:
        near = nearest(encoder.weights, list(slide_recipes.RECIPES))
        yield (
            "weights",
            slide_encoder_message(encoder.weights)
            or f"{encoder.weights!r} is not a slide encoder{near}",
        )
        return
    yield from (("vectors", s) for s in _taken(found[0], found[1], config, encoder.vectors))
    try:
        yield from (("weights", s) for s in _slide_weights(*found))
    except StainsslError as error:
        yield "weights", str(error)


def _taken(name: str, recipe: SlideRecipe, config: Config, key: str) -> Iterator[str]:
    other = config.encoders[key]
    tiles = recipes.find(other.weights or "")
    is_known = tiles is not None and tiles[0] in recipe.tiles and other.vectors is None
    if not is_known and other.features is None:  # of imported features the length is checked later
        wanted = " or ".join(recipe.tiles)
        yield f"{name} needs embeddings by {wanted}, which encoders.{key} is not: name another one."


def _slide_weights(name: str, recipe: SlideRecipe, given: str | None) -> Iterator[str]:
    if given is None and not recipe.repository:
        yield slide_encoders.not_on_the_hub(name, recipe)
        return
    if (file := weights_file(name, recipe, given) if given else recipe.cached) is None:
        return
    with torch.device("meta"):
        model = slide_encoders.build(name, recipe, file)
    weights = tensors.renamed(tensors.read(file, "meta"), recipe.names)
    if problem := tensors.fit(model.state_dict(), weights).problem(str(file), name):
        yield problem


def _blocks(count: int | None, source: str) -> Iterator[str]:
    """Message if the network that training starts from has fewer blocks than are to be trained."""
    if count is None or (model := _network(source)) is None:
        return
    try:
        last_blocks(model, count)
    except StainsslError as error:
        yield str(error)


def _stain_preprocessing(encoder: Encoder) -> Iterator[str]:
    """Problems of `preprocess`: tiles already normalized, or a profile that cannot be read."""
    own = Path((encoder.weights or "").removeprefix(LOCAL)) / STAIN_PROFILE
    if encoder.preprocess and own.is_file():
        yield f"tiles are already normalized to {own}: leave preprocess out."
    for name in encoder.named_stains:
        try:
            stain_profile(encoder.normalizers[0], None if name == REFERENCE else Path(name))
        except StainsslError as error:
            yield str(error)


def source_problems(source: str) -> Iterator[str]:
    """Yield a message if weights cannot be loaded, as far as this is known without a download.

    Args:
        source: see `loading.load`.
    """
    weights, keys = read_source(source)
    name, _, file = weights.partition(FILE)
    plain = name.removeprefix(TIMM)
    try:
        if found := recipes.find(source):
            yield from _recipe(*found)
        elif sentence := slide_encoder_message(source):
            yield sentence
        elif file and timm.is_model(plain.split(".")[0]):
            yield from _file(plain, Path(file))
        elif name.startswith(HUB):
            yield from _hub(name)
        elif REVISION in keys:
            yield f"{weights} has no revision: write hf-hub:timm/NAME.TAG for timm's weights."
        elif not timm.is_model(plain.split(".")[0]):
            yield from _folder(Path(weights.removeprefix(LOCAL)), weights)
        elif problem := _unknown_tag(plain):
            yield problem
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
    if recipe.package and given is None:
        packaged(name, recipe)
        return
    if recipe.is_own:
        _vectors(name, recipe)
    file = weights_file(name, recipe, given) if given else recipe.cached
    if file is None or recipe.needs_config:  # the network is known only with its weights
        return
    with torch.device("meta"):
        model = build_network(recipe)
        weights = tensors.by_timm_names(tensors.read(file, "meta"), recipe.layout, model)
    of = recipe.architecture if recipe.is_own else name
    if problem := tensors.fit(model.state_dict(), weights).problem(str(file), of):
        yield problem


def _vectors(name: str, recipe: EncoderRecipe) -> None:
    """Raise if the network of a user's recipe cannot be built or has another vector length."""
    with torch.device("meta"):
        model = finished(build_network(recipe), recipe)
    try:
        dim = vector_length(model, recipe.input_px)
    except StainsslError:
        raise
    except Exception:  # some layers have no shape on the meta device: left to the job
        return
    check_length(name, recipe, dim)


def _folder(folder: Path, source: str) -> Iterator[str]:
    if adapters.is_adapter(folder):
        tensors.read(folder / adapters.WEIGHTS, "meta")
        base = adapters.read_base(folder).source
        yield from (f"{folder} has an adapter to {base}: {s}" for s in source_problems(base))
    elif not (folder / "config.json").is_file():
        yield (
            f"{source!r} is not in `stainssl encoders`, not a timm name, and not a folder with "
            f"config.json and model.safetensors{nearest_network(source)}"
        )
    elif not (folder / "model.safetensors").is_file() and not list(folder.glob("*.bin")):
        yield f"{folder} has a config.json but no model.safetensors: is the download complete?"
    elif (folder / "model.safetensors").is_file():
        tensors.read(folder / "model.safetensors", "meta")  # raises if the file is truncated


def resized(config: Config) -> Iterator[str]:
    """Yield a warning for each network of timm for which tiles are enlarged or reduced a lot."""
    for name, encoder in config.encoders.items():
        if encoder.weights is None or encoder.vectors is not None or encoder.input_size:
            continue
        side, size = _timms_side(encoder.source or ""), config.tilings[encoder.tiling].size
        if side and not 1 / RESIZED < side / size < RESIZED:
            yield (
                f"encoders.{name}: tiles of {size} px of tiling {encoder.tiling!r} are resized to"
                f" {side} px, the input size of {encoder.weights}: set input_size to change it."
            )


def _timms_side(source: str) -> int | None:
    """Input size in px of a network given by its timm name; None for other sources."""
    name = read_source(source)[0].partition(FILE)[0].removeprefix(TIMM)
    if recipes.find(source) or not timm.is_model(name.split(".")[0]):
        return None
    found = timm.get_pretrained_cfg(name)
    return int(found.input_size[1]) if found else None
