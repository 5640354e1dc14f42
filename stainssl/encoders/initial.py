"""The backbone that training starts from: random or given weights, at the training's image size."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import timm
from timm.models import load_model_config_from_hf
from timm.models._hub import load_model_config_from_path
from torch import nn

from stainssl.encoders import adapters, recipes, revisions
from stainssl.encoders.loading import (
    FILE,
    HUB,
    LOCAL,
    STAIN_PROFILE,
    TIMM,
    load_network,
    new_backbone,
    weights_digest,
    whole_patches,
    with_classes,
)
from stainssl.encoders.weights import read_source
from stainssl.errors import StainsslError

SEEN = "seen.csv"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """A network to train, and the arguments to build it again.

    Attributes:
        model: (B, 3, S, S) → (B, D), without a classifier.
        name: timm name of the architecture.
        model_args: further arguments of the architecture.
        mean, std: of RGB in [0, 1], by which the network's input is normalized.
        sha256: `weights_digest` of the initial weights; empty if they are random.
    """

    model: nn.Module
    name: str
    model_args: Mapping[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sha256: str = ""


def backbone_of(
    source: str | None,
    architecture: str,
    wanted: str | None,
    input_size: int,
    adapted: bool = False,
) -> Backbone:
    """Build the network to train, with random weights (from torch's seed) or given ones.

    Args:
        source: initial weights, as accepted by `load`; None: random weights.
        architecture: timm name of a network with random weights.
        wanted: timm name of the architecture that given weights must have; None: any.
        input_size: side of the images in px.
        adapted: whether the given weights are kept, and only an adapter is saved.

    Raises:
        StainsslError: as `new_backbone` or `initial_backbone`.
    """
    if source is not None:
        return initial_backbone(source, input_size, wanted, adapted)
    model, args = new_backbone(architecture, input_size)
    return _backbone(model, architecture, args)


def initial_backbone(
    source: str, input_size: int, wanted: str | None = None, adapted: bool = False
) -> Backbone:
    """Build a network with given weights for images of any size.

    Position embeddings are resampled to the size as in timm; mean and standard deviation are
    those of the source.

    Args:
        source: initial weights, as accepted by `load`.
        input_size: side of the images in px.
        wanted: timm name of the architecture that the weights must have; None: any.
        adapted: whether the given weights are kept, and only an adapter is saved.

    Raises:
        StainsslError: the weights cannot be loaded, are of another architecture than wanted, or
            their network cannot be built for that size or cannot be saved after training.
    """
    if not adapted:
        _refuse_unsaved(source)  # before reading a gigabyte of weights
    model = load_network(source)
    name, args = architecture_of(source)
    if wanted is not None and wanted.split(".")[0] != name.split(".")[0]:
        raise StainsslError(
            f"init {source} is a {name}, but `backbone` is {wanted}: leave `backbone` out."
        )
    if (Path(read_source(source)[0].removeprefix(LOCAL)) / STAIN_PROFILE).is_file():
        log.warning(
            "%s was trained on normalized tiles; here they are normalized only with `preprocess`",
            source,
        )
    sha256 = weights_digest(source, model)
    own: Any = model.pretrained_cfg
    if own.get("fixed_input_size") and own["input_size"][1] != input_size:
        model, args = _resized(model, name, args, input_size, source)
    log.info("starting from %s: %s at %d px", source, name, input_size)
    return replace(_backbone(model, name, args), sha256=sha256)


def seen_too(seen: pd.DataFrame, source: str | None) -> pd.DataFrame:
    """Patients seen in training, including those seen by the model that training started from.

    Args:
        seen: one row per `patient_id` and `cohort`, with the number of `slides` and `tiles`.
        source: initial weights; the folder of a model trained here has a `seen.csv` beside it.
    """
    path = Path((source or "").removeprefix(LOCAL)).parent / SEEN
    if source is None or not source.startswith(LOCAL) or not path.is_file():
        return seen
    earlier = pd.read_csv(path, dtype={"patient_id": str, "cohort": str}, keep_default_na=False)
    both = pd.concat([seen, earlier]) if len(earlier) else seen
    # A patient of both trainings gets one row, with the larger numbers.
    return both.groupby(["patient_id", "cohort"], as_index=False)[["slides", "tiles"]].max()


def _backbone(model: nn.Module, name: str, args: Mapping[str, Any]) -> Backbone:
    found: Any = model.pretrained_cfg
    return Backbone(model, name, args, tuple(found["mean"]), tuple(found["std"]))


def architecture_of(source: str) -> tuple[str, dict[str, Any]]:
    """timm name and further arguments of the architecture of a source that loads."""
    if found := recipes.find(source):
        recipe = found[1]
        pooled = {"global_pool": "token"} if recipe.is_own and recipe.pooling == "cls" else {}
        args = {**with_classes(recipe.arguments), **recipe.size_argument, **pooled}
        return recipe.architecture, args
    name = source.partition(FILE)[0] if FILE in source else source.removeprefix(TIMM)
    if not source.startswith(HUB) and timm.is_model(name.split(".")[0]):
        return name, {}
    folder = Path(source.removeprefix(LOCAL))
    if adapters.is_adapter(folder):
        return _of_adapter(folder)
    if source.startswith(HUB):
        _, name, args = load_model_config_from_hf(revisions.at_commit(source))
    else:
        _, name, args = load_model_config_from_path(folder)
    return name, {k: v for k, v in (args or {}).items() if k != "num_classes"}


def _of_adapter(folder: Path) -> tuple[str, dict[str, Any]]:
    """Architecture of an adapter's base, for the image size that the adapter was trained at."""
    name, args = architecture_of(adapters.read_base(folder).source)
    own, _, _ = load_model_config_from_path(folder)
    return name, args | ({"img_size": own["input_size"][1]} if own.get("fixed_input_size") else {})


def _refuse_unsaved(source: str) -> None:
    """Raise if the full weights of the trained network could not be saved."""
    while adapters.is_adapter(folder := Path(source.removeprefix(LOCAL))):
        source = adapters.read_base(folder).source
    if (found := recipes.find(source)) and not found[1].is_saved_by_timm:
        raise StainsslError(
            f"init {found[0]}: timm's format cannot store its network (layers by class, or a"
            " pooling that timm does not have), so the trained model could not be saved. Train an"
            " adapter (tune: lora), or start from "
            f"{', '.join(n for n, r in sorted(recipes.RECIPES.items()) if r.is_saved_by_timm)}."
        )


def _resized(
    model: nn.Module, name: str, args: Mapping[str, Any], input_size: int, source: str
) -> tuple[nn.Module, dict[str, Any]]:
    """The same weights in an architecture built for another image size, and its arguments."""
    args = {**args, "img_size": input_size}
    try:
        whole_patches(model, input_size)
        model.set_input_size(img_size=(input_size, input_size))  # type: ignore[operator]
        built = timm.create_model(name, num_classes=0, **args)
        built.load_state_dict(model.state_dict())
    except Exception as error:  # asserts, missing methods and shapes, by family of networks
        own: Any = model.pretrained_cfg
        raise StainsslError(
            f"init {source}: a {name} of {own['input_size'][1]} px cannot be built for "
            f"{input_size} px ({type(error).__name__}: {str(error).splitlines()[0][:200]}). Set "
            f"`input_size: {own['input_size'][1]}`."
        ) from error
    built.pretrained_cfg = model.pretrained_cfg
    return built, args
