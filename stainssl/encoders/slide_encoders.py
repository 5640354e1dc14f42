"""Slide encoders: the tile embeddings of a slide → one embedding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stainssl.encoders import slide_recipes, tensors
from stainssl.encoders.loading import digest, downloaded, load_weights, weights_file
from stainssl.encoders.slide_pooling import NETWORKS
from stainssl.encoders.slide_recipes import RECIPES, SlideRecipe
from stainssl.errors import StainsslError


@dataclass(frozen=True)
class LoadedSlideEncoder:
    """A frozen network that maps the tile embeddings of a slide to one embedding.

    Attributes:
        name: of the recipe.
        recipe: of the network.
        model: in evaluation mode.
        device: of the network.
        weights_sha256: `loading.digest` of the network.
    """

    name: str
    recipe: SlideRecipe
    model: nn.Module
    device: torch.device
    weights_sha256: str

    @torch.inference_mode()
    def __call__(self, vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """(N, tile_dim) finite tile embeddings of a slide, N ≥ 1 → its (D,) embedding."""
        given = torch.from_numpy(np.asarray(vectors, np.float32)).to(self.device)
        found: npt.NDArray[np.float32] = self.model(given).float().cpu().numpy()
        return found


def load(source: str, device: torch.device | str = "cpu") -> LoadedSlideEncoder:
    """Load a slide encoder.

    Args:
        source: a name of `slide_recipes.RECIPES`, or `NAME@FILE`, `NAME@FOLDER` with local
            weights.
        device: where the network runs.

    Raises:
        StainsslError: unknown name, or weights that cannot be downloaded or do not fit.
    """
    found = slide_recipes.find(source)
    if found is None:
        raise StainsslError(f"{source}: not a slide encoder; known: {', '.join(RECIPES)}.")
    name, recipe, given = found
    file = weights_file(name, recipe, given) if given else _downloaded(name, recipe)
    model = build(name, recipe, file)
    load_weights(model, tensors.renamed(tensors.read(file), recipe.names), str(file), name)
    sha256 = digest(model)
    model = model.eval().requires_grad_(False).to(device)
    return LoadedSlideEncoder(name, recipe, model, torch.device(device), sha256)


def _downloaded(name: str, recipe: SlideRecipe) -> Path:
    if not recipe.repository:
        raise StainsslError(not_on_the_hub(name, recipe))
    return downloaded(name, recipe, recipe.config)


def not_on_the_hub(name: str, recipe: SlideRecipe) -> str:
    """Error message for weights that have to be downloaded by hand."""
    return (
        f"{name} is not on the hub: download {recipe.files[0]} as described on {recipe.page}, and"
        f" write {name}@FILE."
    )


def build(name: str, recipe: SlideRecipe, file: Path) -> nn.Module:
    """Build a recipe's network with random weights, sized by the config beside its weights file.

    Args:
        name: of the encoder, for the message.
        recipe: of the encoder; some need no config.
        file: the weights file.

    Raises:
        StainsslError: the config is missing, or belongs to another network.
    """
    network = NETWORKS[recipe.network]
    if not recipe.config:
        return network({}, **recipe.sizes)
    try:
        config = json.loads((file.parent / recipe.config).read_text(encoding="utf-8"))
        return network(config, **recipe.sizes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StainsslError(
            f"{name}: {file} needs the {recipe.config} beside it on {recipe.address}"
            f" ({tensors.first_line(error)}): give a folder with both."
        ) from error
