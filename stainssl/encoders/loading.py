"""Any encoder with its own preprocessing: one trained here, a timm name, a hub name, a folder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from torch import Tensor, nn

from stainssl import __version__
from stainssl.encoders.weights import FILE, HUB, LOCAL, TIMM
from stainssl.errors import StainsslError
from stainssl.stain import StainProfile, estimate, normalize
from stainssl.stain.targets import profile_from_json, profile_to_json
from stainssl.stores.atomic import replacing

# Where checkpoints keep a network's tensors, and what training code puts before their names.
NESTED = ("state_dict", "model", "model_state_dict", "teacher", "student", "net")
PREFIXES = ("module.", "backbone.", "encoder.", "model.", "student.", "teacher.", "trunk.")
STANDARD = "stain.json"  # in a local-dir folder: the stain that its tiles are normalized to


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
        standard: the stain that tiles are normalized to first; None: they are taken as they are.
    """

    model: nn.Module
    dim: int
    input_size: int
    mean: Tensor
    std: Tensor
    interpolation: str
    device: torch.device
    standard: StainProfile | None = None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Vectors of a batch.

        Args:
            images: (B, 3, H, W) uint8, RGB, on any device.

        Returns:
            (B, D) float32 on the encoder's device.
        """
        pixels = self._standardised(images.to(self.device)).float().div(255)
        if pixels.shape[-2:] != (self.input_size, self.input_size):
            pixels = F.interpolate(
                pixels, (self.input_size,) * 2, mode=self.interpolation, antialias=True
            ).clamp(0, 1)
        pixels = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        # Half precision as float16: bfloat16's eight bits would change vectors by a hundredth.
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            vectors = self.model(pixels).float()
        if self.device.type == "cuda" and not vectors.isfinite().all():
            vectors = self.model(pixels).float()  # beyond float16's range inside
        return vectors

    def _standardised(self, images: Tensor) -> Tensor:
        """The images in the standard's stain; those whose own cannot be told stay as they are."""
        if self.standard is None:
            return images
        own = estimate(images, self.standard.method)
        changed = normalize(images, own, self.standard)
        return torch.where(own.valid[:, None, None, None], changed, images)


def load(source: Path | str, device: torch.device | str = "cpu") -> LoadedEncoder:
    """Load an encoder.

    Args:
        source: a timm `local-dir` folder (`local-dir:PATH` or a path), `hf-hub:OWNER/NAME`, a timm
            name with or without `timm:` (its pretrained weights), or `ARCHITECTURE@FILE`: a timm
            name, and a file of weights for it (safetensors, or torch's without code in it).
        device: where it runs.

    Raises:
        StainsslError: no such folder or name, weights that do not fit or cannot be had.
    """
    model = load_network(str(source)).eval().requires_grad_(False).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = resolve_model_data_config(model)
    if data["input_size"][1] != data["input_size"][2]:
        raise StainsslError(f"{source}: it takes {data['input_size']}; tiles are squares.")
    interpolation = data["interpolation"]
    return LoadedEncoder(
        model=model,
        dim=vector_length(model, data["input_size"][1]),
        input_size=data["input_size"][1],
        mean=torch.tensor(data["mean"], device=device).view(1, 3, 1, 1),
        std=torch.tensor(data["std"], device=device).view(1, 3, 1, 1),
        interpolation=interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
        device=torch.device(device),
        standard=_standard(str(source)),
    )


def _standard(source: str) -> StainProfile | None:
    path = Path(source.removeprefix(LOCAL)) / STANDARD
    if not path.is_file():
        return None
    return profile_from_json(json.loads(path.read_text(encoding="utf-8")))


@torch.inference_mode()
def vector_length(model: nn.Module, input_size: int) -> int:
    """Length of a network's vectors, asked of it: `num_features` may leave out a head.

    Args:
        input_size: side in px of what it is shown.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()  # one image more in the statistics of its norms would change the network
    length = model(torch.zeros(1, 3, input_size, input_size, device=device)).shape[-1]
    model.train(was_training)
    return int(length)


def load_network(source: str) -> nn.Module:
    """A timm network with the weights of a source as `load` takes it, without a classifier.

    Its `pretrained_cfg` says how its images are prepared.

    Raises:
        StainsslError: as `load`.
    """
    if source.startswith(HUB):
        return _from_hub(source)
    if FILE in source and timm.is_model(source.partition(FILE)[0].split(".")[0]):
        architecture, _, file = source.partition(FILE)
        return _from_file(architecture, Path(file))
    name = source.removeprefix(TIMM)
    if source.startswith(TIMM) or timm.is_model(name):
        return _from_timm(name)
    return _from_folder(Path(source.removeprefix(LOCAL)), source)


def _from_folder(folder: Path, source: str) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise StainsslError(
            f"{source}: neither a folder with config.json and model.safetensors nor a timm name"
            f"{_close(source)}"
        )
    try:
        return timm.create_model(f"{LOCAL}{folder}", pretrained=True, num_classes=0)
    except Exception as error:  # timm, torch and safetensors each raise their own kinds
        raise StainsslError(
            f"{folder}: its weights do not fit its config.json or are not whole "
            f"({_first_line(error)}). Make it again."
        ) from error


def _from_file(architecture: str, file: Path) -> nn.Module:
    """A timm architecture with the weights of a file; preprocessing is the architecture's."""
    weights = _tensors(file)
    model = timm.create_model(architecture, num_classes=0)
    wanted = model.state_dict()
    fitting = _named_as(wanted, weights)
    missing = sorted(set(wanted) - set(fitting))
    wrong = [n for n, value in fitting.items() if value.shape != wanted[n].shape]
    if missing or wrong:
        named = ", ".join([*missing, *wrong][:3])
        raise StainsslError(
            f"{file}: its weights are not those of {architecture}: {len(missing)} of {len(wanted)}"
            f" tensors are missing and {len(wrong)} have another shape ({named} …); it holds"
            f" {', '.join(sorted(weights)[:3])} … Name the architecture that they were trained as."
        )
    model.load_state_dict(fitting)
    return model


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, taken out of what a checkpoint wraps them in."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise StainsslError(f"{file}: no such file of weights.") from None
    except Exception as error:  # torch, pickle, zip and safetensors each raise their own kinds
        raise StainsslError(
            f"{file} is no whole file of weights, or holds code ({_first_line(error)}). Save the"
            " network's state_dict() alone."
        ) from error
    while inner := next((found[k] for k in NESTED if isinstance(found.get(k), dict)), None):
        found = inner
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _named_as(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that an architecture has, whatever prefixes training put before their names."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        short = name
        while short not in wanted and (p := next((p for p in PREFIXES if short.startswith(p)), "")):
            short = short.removeprefix(p)
        if short in wanted:
            found[short] = value
    return found


def _from_timm(name: str) -> nn.Module:
    if not timm.is_model(name.split(".")[0]):
        raise StainsslError(f"{name!r} is not a timm name{_close(name)}")
    return _download(name, name)


def _from_hub(source: str) -> nn.Module:
    return _download(source, f"the hub's {source.removeprefix(HUB)}")


def _download(name: str, what: str) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # no network, no right, no such name: each library has its own
        raise StainsslError(
            f"The weights of {what} cannot be had ({_first_line(error)}). Check the name and the "
            "network; a gated model needs its licence accepted and `hf auth login`; or download "
            "it elsewhere and give its folder as weights: local-dir:FOLDER."
        ) from error


def _close(name: str) -> str:
    """The end of a sentence: the nearest timm name, if any is near (there are over a thousand)."""
    found = difflib.get_close_matches(name, timm.list_models(), n=1)
    return f"; did you mean {found[0]!r}?" if found else "."


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


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
        raise StainsslError(f"backbone {name!r} is not a timm name{_close(name)}")
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
            f"{input_size} px are no multiple of patches of {side} px: set input_size to "
            f"{low or side} or {low + side}."
        )


def save_local_dir(
    model: nn.Module,
    path: Path,
    *,
    backbone: str,
    input_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    model_args: Mapping[str, Any],
    card: Mapping[str, Any],
    standard: StainProfile | None = None,
) -> None:
    """Write a timm network as a folder that `timm.create_model("local-dir:…")` reads.

    Args:
        model: a timm network without a classifier.
        path: the folder; what is there is replaced when the new one is whole.
        backbone: timm name of the architecture.
        input_size: side in px that it was trained at.
        mean, std: of RGB in [0, 1], as in training.
        model_args: arguments beside the name that make the architecture.
        card: what the model card says, a line a key.
        standard: the stain that its tiles are normalized to first; `load` does so, timm does not.
    """
    config = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    config |= {
        "architecture": backbone.split(".")[0], "input_size": (3, input_size, input_size),
        "mean": mean, "std": std, "interpolation": "bilinear", "crop_pct": 1.0, "num_classes": 0,
    }  # fmt: skip
    stale = ("tag", "hf_hub_id", "url", "file", "license", "origin_url", "paper_name", "paper_ids",
             "notes", "test_input_size", "test_crop_pct", "pool_size", "label_names")  # fmt: skip
    model.pretrained_cfg = {k: v for k, v in config.items() if k not in stale}  # type: ignore[assignment]
    # The format holds plain tensors only; channels-last ones are not.
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with replacing(path) as made:
        save_for_hf(model, str(made), model_args=dict(model_args), safe_serialization=True)
        if standard is not None:
            content = json.dumps(profile_to_json(standard), indent=1)
            (made / STANDARD).write_text(content + "\n", encoding="utf-8")
        (made / "README.md").write_text(_card(path.parent.name, backbone, card), encoding="utf-8")


def _card(name: str, backbone: str, card: Mapping[str, Any]) -> str:
    versions = {"stainssl": __version__} | {p: version(p) for p in ("torch", "timm")}
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in {**card, **versions}.items())
    return (
        f"---\nlibrary_name: timm\ntags: [histopathology, self-supervised]\n---\n# {name}\n\n"
        f"A {backbone} pretrained without labels on H&E tiles. For research, not for diagnosis.\n\n"
        "```python\nimport timm\n"
        'model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True, num_classes=0)\n'
        "```\n\n"
        f"| | |\n|---|---|\n{rows}\n"
    )


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
