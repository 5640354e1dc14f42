"""Tensors of weights: read from files, given timm's names, and fitted or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from stainssl.encoders.recipes import Renaming
from stainssl.encoders.weights import Layout
from stainssl.errors import StainsslError

# Where checkpoints keep a network's tensors, and what training code puts before their names.
NESTED = ("state_dict", "model", "model_state_dict", "teacher", "student", "net")
PREFIXES = ("module.", "backbone.", "encoder.", "model.", "student.", "teacher.", "trunk.")
# What a frozen encoder has no use for: classifiers, heads of pretraining, tokens of masking.
UNUSED = re.compile(r"^(head|head_dist|fc|classifier|last_linear|mask_token|pooler)\b")
TRANSFORMERS: Renaming = (  # of transformers' ViT and DINOv2, and timm's
    (r"^(vit|dinov2)\.", ""),
    (r"^embeddings\.(cls_token|mask_token)", r"\1"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.register_tokens", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
# Of an image and text model: what the images take, by the names in `stainssl.encoders.modules`.
KEEP: Renaming = (
    (r"^(?!visual\.|visual_head\.)", None),
    (r"^visual\.", "model."),
    (r"^visual_head\.", "projection."),
    (r"\.ls([12])\.weight$", r".ls\1.gamma"),  # transformers renamed them
)
CONCH: Renaming = (
    (r"^module\.", ""),
    (r"^(?!visual\.)|^visual\.(attn_pool_caption|ln_caption|proj_contrast)\b", None),
    (r"^visual\.", ""),
    (r"^trunk\.", "model."),
    (r"^attn_pool_contrast\.", ""),
    (r"^ln_contrast\.", "ln."),
)
CONCH_15: Renaming = (
    *CONCH[-3:],
    (r"^to_q\.weight$", "attn.q_proj_weight"),
    (r"^to_out\.", "attn.out_proj."),
)
MUSK: Renaming = (  # A is of images and B of text
    (r"^(?!beit3\.)|^beit3\.text_embed\.|\.B\.|\.mask_token$", None),
    (r"^beit3\.(encoder\.)?", ""),
    (r"\.A\.", "."),
    (r"^vision_embed\.cls_token$", "cls_token"),
    (r"^vision_embed\.", "patch_embed."),
    (r"^embed_positions\.weight$", "pos_embed"),
    (r"^layers\.", "blocks."),
    (r"^layer_norm\.", "norm."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.self_attn\.", ".attn."),
    (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.", ".mlp."),
    (r"\.mlp\.ffn_layernorm\.", ".mlp.norm."),
)
# What Swin computes from the size, which some versions of timm stored.
SWIN: Renaming = ((r"\.(attn_mask|relative_position_index)$", None),)
OLD_SWIN: Renaming = (  # timm before 0.8 halved at the end of a stage
    *SWIN,
    (r"^layers\.2\.downsample\.", "layers.3.downsample."),
    (r"^layers\.1\.downsample\.", "layers.2.downsample."),
    (r"^layers\.0\.downsample\.", "layers.1.downsample."),
)


def read(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a weights file by name, unwrapped from a checkpoint.

    Args:
        file: safetensors, or torch's without code in it.
        device: `meta` reads names and shapes alone.

    Raises:
        StainsslError: no such file, not whole, or with code in it.
    """
    try:
        if file.suffix == ".safetensors":
            return _safetensors_shapes(file) if device == "meta" else load_file(file)
        found = torch.load(file, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise StainsslError(f"{file}: no such weights file.") from None
    except Exception as error:  # torch, pickle, zip and safetensors each raise their own kinds
        raise StainsslError(
            f"{file} is not a complete weights file, or contains code ({first_line(error)}). Save"
            " only the network's state_dict()."
        ) from error
    if not isinstance(found, dict):
        raise StainsslError(f"{file} has a {type(found).__name__}, not named tensors.")
    while inner := next((found[k] for k in NESTED if isinstance(found.get(k), dict)), None):
        found = inner
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _safetensors_shapes(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as header:
        names = list(header.keys())
        shapes = {name: header.get_slice(name).get_shape() for name in names}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def first_line(error: Exception) -> str:
    """An error's type and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@dataclass(frozen=True)
class Fit:
    """How tensors fit an architecture.

    Attributes:
        tensors: those that it has, by its names.
        missing: names that it has and the weights lack.
        unexpected: names that the weights have, it lacks, and no classifier is.
        reshaped: names of another shape.
    """

    tensors: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def problem(self, of: str, architecture: str) -> str | None:
        """A sentence that names every tensor that does not fit; None where all do.

        Args:
            of: the weights' name in the sentence.
            architecture: and the network's.
        """
        kinds = (("are missing", self.missing), ("are unexpected", self.unexpected),
                 ("have another shape", self.reshaped))  # fmt: skip
        found = "; ".join(f"{len(n)} {kind}: {', '.join(_by_block(n))}" for kind, n in kinds if n)
        if not found:
            return None
        return f"{of}: its weights are not those of {architecture}: {found}. {self._cause()}"

    def _cause(self) -> str:
        names = " ".join((*self.missing, *self.unexpected))
        if ".ls1.gamma" in names:
            return "Only one of the two has LayerScale. Give the encoder by name (`uni@FILE`)."
        if "reg_token" in names:
            return "Register tokens: name the architecture with the same number (…_reg4_…)."
        if "pos_embed" in self.reshaped:
            return (
                "It was trained at another image or patch size: name that architecture, or give a"
                " 'recipe' with its image size (input_px)."
            )
        return "Name the architecture that they were trained as."


def _by_block(names: Iterable[str]) -> list[str]:
    """Names of which those that differ in a block's number only are one: `blocks.*.norm1.bias`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), []).append(name)
    return [one[0] if len(one) == 1 else f"{key} ({len(one)})" for key, one in groups.items()]


def fit(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Fit:
    """How weights fit an architecture, whatever prefixes training put before their names.

    Args:
        wanted: the architecture's `state_dict()`.
        weights: as `read` gives them.
    """
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for name, value in weights.items():
        short = _without_prefixes(name, wanted)
        if short in wanted:
            found[short] = value
        elif not UNUSED.match(short):
            unexpected.append(name)
    reshaped = sorted(n for n, value in found.items() if value.shape != wanted[n].shape)
    return Fit(found, sorted(set(wanted) - set(found)), sorted(unexpected), reshaped)


def _without_prefixes(name: str, wanted: Iterable[str]) -> str:
    short = name
    while short not in wanted and (p := next((p for p in PREFIXES if short.startswith(p)), "")):
        short = short.removeprefix(p)
    return short


def from_transformers(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of transformers' ViT or DINOv2 by timm's names, for a timm network.

    Queries, keys and values become one matrix; where the network adds no position to its class
    token, that of the class token is added to it here; positions of another image size are
    interpolated as transformers does it (bicubic).

    Args:
        weights: as `read` gives them.
        model: of timm, says how many patches there are.
    """
    named = renamed(weights, TRANSFORMERS)
    out = _joined(named, ("query", "key", "value"))
    if "pos_embed" in out:
        _set_positions(out, model)
    return out


def renamed(weights: Mapping[str, Tensor], names: Renaming) -> dict[str, Tensor]:
    """Tensors under other names, without those that are not used.

    Args:
        weights: as `read` gives them.
        names: patterns and what replaces them, one after the other.
    """
    found = ((_name(name, names), value) for name, value in weights.items())
    return {name: value for name, value in found if name is not None}


def _name(name: str, names: Renaming) -> str | None:
    for pattern, replacement in names:
        if replacement is not None:
            name = re.sub(pattern, replacement, name)
        elif re.search(pattern, name):
            return None
    return name


def _joined(named: Mapping[str, Tensor], parts: tuple[str, str, str]) -> dict[str, Tensor]:
    """Tensors with the matrices of queries, keys and values as the one that timm has."""
    out = {n: v for n, v in named.items() if not any(f".attn.{part}." in n for part in parts)}
    first = parts[0]
    for name in (name for name in named if f".attn.{first}." in name):
        three = [named[name.replace(first, part)] for part in parts]
        out[name.replace(first, "qkv")] = torch.cat(three)
    return out


def from_keep(weights: Mapping[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
    """The tensors of KEEP's images by the names of a `Projection` of a timm network."""
    return renamed(weights, KEEP)


def from_conch(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of CONCH's images by the names of an `AttentionPool` of a timm network.

    Args:
        weights: as `read` gives them.
        model: such a pool.
    """
    return _with_conch_positions(renamed(weights, CONCH), model)


def from_conch_15(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of CONCH v1.5 by the names of an `AttentionPool` of a timm network.

    Its matrix of keys and values is two there.

    Args:
        weights: as `read` gives them.
        model: such a pool.
    """
    out = renamed(weights, CONCH_15)
    if (both := out.pop("to_kv.weight", None)) is not None:
        out["attn.k_proj_weight"], out["attn.v_proj_weight"] = both.chunk(2)
    return _with_conch_positions(out, model)


def _with_conch_positions(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """With positions for the model's grid of patches, resampled as CONCH's own code does it."""
    name = "model.pos_embed"
    if name in tensors and tensors[name].shape != model.state_dict()[name].shape:
        grid: Any = model.model.patch_embed.grid_size  # type: ignore[union-attr]
        tensors[name] = resample_abs_pos_embed(
            tensors[name], list(grid), interpolation="bilinear", antialias=False
        )
    return tensors


def from_musk(weights: Mapping[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
    """The tensors of MUSK's images by the names of timm's BEiT-3.

    Its first two positions are no token's, a habit of fairseq's.
    """
    out = _joined(renamed(weights, MUSK), ("q_proj", "k_proj", "v_proj"))
    if "pos_embed" in out:
        out["pos_embed"] = out["pos_embed"][None, 2:]
    return out


def from_swin(weights: Mapping[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
    """The tensors of a Swin of timm, before version 0.8 or since, by the names that it has now."""
    is_old = any(name.startswith("layers.0.downsample.") for name in weights)
    return renamed(weights, OLD_SWIN if is_old else SWIN)


def by_timm_names(
    weights: Mapping[str, Tensor], layout: Layout, model: nn.Module
) -> Mapping[str, Tensor]:
    """The tensors of a recipe's file by the names that its timm network has.

    Args:
        weights: as `read` gives them.
        layout: whose names they have.
        model: of timm.
    """
    return BY_LAYOUT[layout](weights, model) if layout in BY_LAYOUT else weights


def in_order(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors renamed by position: in an architecture's order, but under other names.

    Whether they belong to it, their shapes tell (`fit`); a classifier at the end is left out.

    Args:
        weights: as `read` gives them.
        model: of the architecture.
    """
    return dict(zip(model.state_dict(), weights.values(), strict=False))


def _set_positions(tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Positions for the model's grid of patches; without that of the class token if it has none."""
    grid: tuple[int, int] = model.patch_embed.grid_size  # type: ignore[union-attr, assignment]
    first, patches = tensors["pos_embed"][:, :1], tensors["pos_embed"][:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if (side, side) != grid:
        planes = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        planes = F.interpolate(planes.float(), grid, mode="bicubic", align_corners=False)
        patches = planes.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1).to(first.dtype)
    if model.no_embed_class:
        tensors["cls_token"] = tensors["cls_token"] + first
        tensors["pos_embed"] = patches
    else:
        tensors["pos_embed"] = torch.cat([first, patches], dim=1)


BY_LAYOUT: Mapping[str, Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]]] = {
    "transformers": from_transformers,
    "ordered": in_order,
    "swin": from_swin,
    "keep": from_keep,
    "conch": from_conch,
    "conch-v1.5": from_conch_15,
    "musk": from_musk,
}
