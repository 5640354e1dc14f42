"""Encoders of slides by name: their inputs, how they are built, where their weights are.

Those here pool by gated attention and need nothing but the vectors of a slide's tiles: not where
these lie, and no code of the hub.
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
    """A published encoder of slides.

    Attributes:
        repository: OWNER/NAME on the hub; "" where it is not there.
        page: where it can be read about.
        tiles: the encoders, by their names in `recipes.RECIPES`, whose vectors it takes.
        tile_dim: length of these.
        dim: D, length of its vector.
        license: of its weights.
        network: of `slide_pooling.NETWORKS`.
        names: from the names of its tensors to ours.
        mpp, tile_px: of the tiles that it was trained on.
        gated: as of an `EncoderRecipe`.
        files: likewise.
        config: the file beside the weights that the network needs; "": none.
        sizes: arguments of the network.
        revision: as of an `EncoderRecipe`.
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
        """As of an `EncoderRecipe`."""
        return hub.cached(self.repository, self.files, self.revision) if self.repository else None

    @property
    def address(self) -> str:
        """Where it can be downloaded."""
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
    (r"^token_projector\.", None),  # of pretraining
    (r"^wsi_embedders\.pre_attn\.", "embed."),
    (r"^wsi_embedders\.attn\.", "attention."),
)


def _feather(tiles: str, repository: str, given: int, tile_px: int) -> SlideRecipe:
    """github.com/mahmoodlab/MIL-Lab: src/models/abmil.py, src/model_configs/abmil/base.yaml.

    Tiles as TRIDENT's README has them for it.
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
    # which the anatomical site does not change). Weights by its README, not on the hub: "request
    # access", "non-commercial academic purposes"; LICENSE is AGPL-3.0. Tiles as TRIDENT's README
    # has them for it.
    "chief": SlideRecipe(
        "", "https://github.com/hms-dbmi/CHIEF", ("ctranspath",), 768, 768,
        "AGPL-3.0, academic use", "one layer", CHIEF_NAMES,
        mpp=(1.0,), tile_px=256, gated=True, files=("CHIEF_pretraining.pth",),
        sizes={"given": 768, "hidden": 256, "pools_given": True},
    ),
    # github.com/mahmoodlab/MADELEINE: madeleine/models/Model.py (`encode_he`), factory.py, README
    # (the license, too). Open says lazyslide-models 0.1.0.
    "madeleine": SlideRecipe(
        "MahmoodLab/madeleine", "https://github.com/mahmoodlab/MADELEINE", ("conch-madeleine",),
        512, 512, NON_COMMERCIAL, "three layers", MADELEINE_NAMES,
        mpp=(1.0,), tile_px=256, gated=False, files=("model.pt",), config="model_config.json",
    ),
})  # fmt: skip
ALIASES = {"feather-uni-v2": "feather-uni2-h", "feather-conch-v15": "feather"}

# Known ones that need more: where tiles lie, or code of the hub. Refused by name.
ELSEWHERE = ("titan", "prism", "gigapath-slide", "care", "threads")
NOT_HERE = (
    "{} needs code from the hub, which stainssl does not run: embed with TRIDENT, and import"
    " its slide_features folder (features: trident:FOLDER)."
)


def find(source: str) -> tuple[str, SlideRecipe, str | None] | None:
    """The recipe of a source: name, recipe, and the file or folder of weights if one is given."""
    weights, keys = read_source(source)
    name, _, file = weights.partition("@")
    plain = canonical(name)
    plain = ALIASES.get(plain, plain)
    if plain not in RECIPES:
        return None
    return plain, replace(RECIPES[plain], revision=keys.get(REVISION)), file or None


def told_of(source: str) -> str | None:
    """A sentence about the name of an encoder of slides where one of tiles is asked for."""
    plain = canonical(read_source(source)[0].partition("@")[0])
    if (found := find(source)) is not None:
        return (
            f"{found[0]} is a slide encoder: name its tile encoder, {' or '.join(found[1].tiles)},"
            " in 'vectors'."
        )
    return NOT_HERE.format(plain) if plain in ELSEWHERE else None
