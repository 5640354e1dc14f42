"""Encoders of slides: the vectors of a slide's tiles → one vector."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stainssl.encoders import slide_recipes, tensors
from stainssl.encoders.loading import digest, downloaded, fill, weights_file
from stainssl.encoders.slide_pooling import NETWORKS
from stainssl.encoders.slide_recipes import RECIPES, SlideRecipe
from stainssl.errors import StainsslError


@dataclass(frozen=True)
class LoadedSlideEncoder:
    """A frozen network that turns vectors of tiles into one.

    Attributes:
        name: of its recipe.
        recipe: how it was made.
        model: in evaluation mode.
        device: where it is.
        weights_sha256: of its tensors.
    """

    name: str
    recipe: SlideRecipe
    model: nn.Module
    device: torch.device
    weights_sha256: str

    @torch.inference_mode()
    def __call__(self, vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """The (D,) vector of a slide of (N, tile_dim) finite vectors of tiles, N at least 1."""
        given = torch.from_numpy(np.asarray(vectors, np.float32)).to(self.device)
        found: npt.NDArray[np.float32] = self.model(given).float().cpu().numpy()
        return found


def load(source: str, device: torch.device | str = "cpu") -> LoadedSlideEncoder:
    """Load an encoder of slides.

    Args:
        source: a name of `RECIPES`, with `@FILE` or `@FOLDER` where its weights are not to be
            downloaded.
        device: where it runs.

    Raises:
        StainsslError: no such name, or weights that cannot be had or do not fit.
    """
    found = slide_recipes.find(source)
    if found is None:
        raise StainsslError(f"{source}: not a slide encoder; known: {', '.join(RECIPES)}.")
    name, recipe, given = found
    file = weights_file(name, recipe, given) if given else _downloaded(name, recipe)
    model = build(name, recipe, file)
    fill(model, tensors.renamed(tensors.read(file), recipe.names), str(file), name)
    sha256 = digest(model)
    model = model.eval().requires_grad_(False).to(device)
    return LoadedSlideEncoder(name, recipe, model, torch.device(device), sha256)


def _downloaded(name: str, recipe: SlideRecipe) -> Path:
    if not recipe.repository:
        raise StainsslError(not_on_the_hub(name, recipe))
    return downloaded(name, recipe, recipe.config)


def not_on_the_hub(name: str, recipe: SlideRecipe) -> str:
    """A sentence about weights that have to be downloaded by hand."""
    return (
        f"{name} is not on the hub: download {recipe.files[0]} as described on {recipe.page}, and"
        f" write {name}@FILE."
    )


def build(name: str, recipe: SlideRecipe, file: Path) -> nn.Module:
    """A recipe's network with random weights, as the config beside its file says.

    Raises:
        StainsslError: there is no such config, or it is another network's.
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
