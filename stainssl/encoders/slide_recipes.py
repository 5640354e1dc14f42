"""Slide encoders by name: tile embeddings, network and weights of each.

All pool by gated attention and need only the tile embeddings of a slide: no tile positions, and no
code from the hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from stainssl.encoders import hub
from stainssl.encoders.recipes import HUB_PAGES, NON_COMMERCIAL, Renaming, canonical
from stainssl.encoders.weights import REVISION, read_source


@dataclass(frozen=True)
class SlideRecipe:
    """A published slide encoder.

    Attributes:
        repository: OWNER/NAME on the hub; "": not on the hub.
        page: address of its description.
        tiles: names in `recipes.RECIPES` of the tile encoders whose embeddings it takes.
        tile_dim: dimension of the tile embeddings.
        dim: D, dimension of the slide embedding.
        license: of the weights.
        network: a key of `slide_pooling.NETWORKS`.
        names: renaming of its tensors to those of `slide_pooling`.
        mpp, tile_px: µm/px and side in px of the tiles that it was trained on.
        gated, files, revision: as in `EncoderRecipe`.
        config: file beside the weights that the network needs; "": none.
        sizes: arguments of the network.
    """

    repository: str
    page: str
    tiles: tuple[str, ...]
    tile_dim: int
    dim: int
    license: str
    network: Literal["one layer", "three layers"]
    names: Renaming
    mpp: tuple[float, ...]
    tile_px: int
    gated: bool
    files: tuple[str, ...]
    config: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None

    @property
    def cached(self) -> Path | None:
        """Path of the weights in the hub's cache; None if they are not cached."""
        return hub.cached(self.repository, self.files, self.revision) if self.repository else None

    @property
    def address(self) -> str:
        """Address of the download."""
        return f"{HUB_PAGES}/{self.repository}" if self.repository else self.page


CHIEF_NAMES: Renaming = (
    (r"^(classifiers|instance_classifiers|att_head|text_to_vision|organ_embedding)\b", None),
    (r"^attention_net\.0\.", "embed.0."),
    (r"^attention_net\.3\.", "attention.0."),
)
FEATHER_NAMES: Renaming = (
    (r"^model\.", ""),
    (r"^classifier\.", None),
    (r"^patch_embed\.", "embed."),
    (r"^global_attn\.", "attention.0."),
)
MADELEINE_NAMES: Renaming = (
    (r"^module\.", ""),
    (r"^token_projector\.", None),  # only used in pretraining
    (r"^wsi_embedders\.pre_attn\.", "embed."),
    (r"^wsi_embedders\.attn\.", "attention."),
)


def _feather(tiles: str, repository: str, given: int, tile_px: int) -> SlideRecipe:
    """FEATHER, from github.com/mahmoodlab/MIL-Lab.

    src/models/abmil.py, src/model_configs/abmil/base.yaml; tiles as in TRIDENT's README.
    """
    return SlideRecipe(
        f"MahmoodLab/abmil.base.{repository}.pc108-24k", "https://github.com/mahmoodlab/MIL-Lab",
        (tiles,), given, 512, NON_COMMERCIAL, "one layer", FEATHER_NAMES,
        mpp=(0.5,), tile_px=tile_px, gated=True, files=("model.safetensors", "pytorch_model.bin"),
        sizes={"given": given, "hidden": 384, "pools_given": False},
    )  # fmt: skip


RECIPES: Mapping[str, SlideRecipe] = MappingProxyType({
    "feather": _feather("conch-v1.5", "conch_v15", 768, 512),
    "feather-uni2-h": _feather("uni2-h", "uni_v2", 1536, 256),
    "feather-uni": _feather("uni", "uni", 1024, 256),
    # github.com/hms-dbmi/CHIEF: models/CHIEF.py, Get_CHIEF_WSI_level_feature.py (`WSI_feature`,
    # which does not depend on the anatomical site). Weights are not on the hub; its README says
    # "request access", "non-commercial academic purposes"; LICENSE is AGPL-3.0. Tiles as in
    # TRIDENT's README.
    "chief": SlideRecipe(
        "", "https://github.com/hms-dbmi/CHIEF", ("ctranspath",), 768, 768,
        "AGPL-3.0, academic use", "one layer", CHIEF_NAMES,
        mpp=(1.0,), tile_px=256, gated=True, files=("CHIEF_pretraining.pth",),
        sizes={"given": 768, "hidden": 256, "pools_given": True},
    ),
    # github.com/mahmoodlab/MADELEINE: madeleine/models/Model.py (`encode_he`), factory.py, README
    # (also for the license). Not gated according to lazyslide-models 0.1.0.
    "madeleine": SlideRecipe(
        "MahmoodLab/madeleine", "https://github.com/mahmoodlab/MADELEINE", ("conch-madeleine",),
        512, 512, NON_COMMERCIAL, "three layers", MADELEINE_NAMES,
        mpp=(1.0,), tile_px=256, gated=False, files=("model.pt",), config="model_config.json",
    ),
})  # fmt: skip
ALIASES = {"feather-uni-v2": "feather-uni2-h", "feather-conch-v15": "feather"}

# Slide encoders that need tile positions or code from the hub, and are refused by name.
ELSEWHERE = ("titan", "prism", "gigapath-slide", "care", "threads")
NOT_HERE = (
    "{} needs code from the hub, which stainssl does not run: embed with TRIDENT, and import"
    " its slide_features folder (features: trident:FOLDER)."
)


def find(source: str) -> tuple[str, SlideRecipe, str | None] | None:
    """Find the recipe of a source: name, recipe, and the given file or folder of weights.

    Args:
        source: `NAME`, `NAME@FILE` or `NAME@FOLDER`.

    Returns:
        None if the source has no recipe; the last item is None if no weights are given.
    """
    weights, keys = read_source(source)
    name, _, file = weights.partition("@")
    plain = canonical(name)
    plain = ALIASES.get(plain, plain)
    if plain not in RECIPES:
        return None
    return plain, replace(RECIPES[plain], revision=keys.get(REVISION)), file or None


def slide_encoder_message(source: str) -> str | None:
    """Error message for a slide encoder where a tile encoder is expected; None otherwise."""
    plain = canonical(read_source(source)[0].partition("@")[0])
    if (found := find(source)) is not None:
        return (
            f"{found[0]} is a slide encoder: name its tile encoder, {' or '.join(found[1].tiles)},"
            " in 'vectors'."
        )
    return NOT_HERE.format(plain) if plain in ELSEWHERE else None
