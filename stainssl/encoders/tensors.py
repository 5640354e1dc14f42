"""Tensors of weights files: read, renamed to timm's names, and matched to a network."""

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

# Keys of checkpoints with the network's tensors, and prefixes of names added by training code.
NESTED = ("state_dict", "model", "model_state_dict", "teacher", "student", "net")
PREFIXES = ("module.", "backbone.", "encoder.", "model.", "student.", "teacher.", "trunk.")
# Not needed by a frozen encoder: classifiers, heads of pretraining, mask tokens.
UNUSED = re.compile(r"^(head|head_dist|fc|classifier|last_linear|mask_token|pooler)\b")
TRANSFORMERS: Renaming = (  # names of transformers' ViT and DINOv2 to timm's
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
# Image towers of image and text models, with the names of `stainssl.encoders.modules`.
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
MUSK: Renaming = (  # A is for images, B for text
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
# Buffers that Swin computes from the image size, which some versions of timm stored.
SWIN: Renaming = ((r"\.(attn_mask|relative_position_index)$", None),)
OLD_SWIN: Renaming = (  # timm before 0.8 downsampled at the end of a stage
    *SWIN,
    (r"^layers\.2\.downsample\.", "layers.3.downsample."),
    (r"^layers\.1\.downsample\.", "layers.2.downsample."),
    (r"^layers\.0\.downsample\.", "layers.1.downsample."),
)


def read(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read the tensors of a weights file or checkpoint, by name.

    Args:
        file: safetensors, or torch's without code in it.
        device: of the tensors; `meta` reads only names and shapes.

    Raises:
        StainsslError: the file does not exist, is incomplete, contains code, or has no named
            tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return _safetensors_shapes(file) if device == "meta" else load_file(file)
        found = torch.load(file, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise StainsslError(f"{file}: no such weights file.") from None
    except Exception as error:  # torch, pickle, zip and safetensors raise their own exceptions
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
    """Type and first line of an exception, up to 200 characters of the latter."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@dataclass(frozen=True)
class Fit:
    """Result of matching weights to an architecture.

    Attributes:
        tensors: the weights that the architecture has, by its names.
        missing: names that only the architecture has.
        unexpected: names that only the weights have, other than classifiers and the like.
        reshaped: names whose shapes differ.
    """

    tensors: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def problem(self, of: str, architecture: str) -> str | None:
        """Error message that names every tensor that does not fit; None if all do.

        Args:
            of: name of the weights in the message.
            architecture: name of the network in the message.
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
    """Group names that differ only in numbers, as those of blocks: `blocks.*.norm1.bias (12)`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), []).append(name)
    return [one[0] if len(one) == 1 else f"{key} ({len(one)})" for key, one in groups.items()]


def fit(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Fit:
    """Match weights to an architecture, ignoring prefixes of names added by training code.

    Args:
        wanted: the architecture's `state_dict()`.
        weights: tensors by name, as returned by `read`.
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
    """Rename the tensors of transformers' ViT or DINOv2 for a timm network.

    Query, key and value matrices are concatenated. If the network has no position embedding for
    its class token, that of the file is added to the class token. Position embeddings of another
    image size are interpolated as in transformers (bicubic).

    Args:
        weights: tensors by name, as returned by `read`.
        model: the timm network, whose patch grid is used.
    """
    named = renamed(weights, TRANSFORMERS)
    out = _joined(named, ("query", "key", "value"))
    if "pos_embed" in out:
        _set_positions(out, model)
    return out


def renamed(weights: Mapping[str, Tensor], names: Renaming) -> dict[str, Tensor]:
    """Rename tensors, and leave out those that are not used.

    Args:
        weights: tensors by name, as returned by `read`.
        names: patterns and replacements, applied in order.
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
    """Concatenate query, key and value tensors to timm's `qkv`."""
    out = {n: v for n, v in named.items() if not any(f".attn.{part}." in n for part in parts)}
    first = parts[0]
    for name in (name for name in named if f".attn.{first}." in name):
        three = [named[name.replace(first, part)] for part in parts]
        out[name.replace(first, "qkv")] = torch.cat(three)
    return out


def from_keep(weights: Mapping[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of KEEP's image tower for a `Projection` of a timm network."""
    return renamed(weights, KEEP)


def from_conch(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of CONCH's image tower for an `AttentionPool` of a timm network.

    Args:
        weights: tensors by name, as returned by `read`.
        model: the `AttentionPool`.
    """
    return _with_conch_positions(renamed(weights, CONCH), model)


def from_conch_15(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of CONCH v1.5 for an `AttentionPool` of a timm network.

    Its joint matrix of keys and values is split into two.

    Args:
        weights: tensors by name, as returned by `read`.
        model: the `AttentionPool`.
    """
    out = renamed(weights, CONCH_15)
    if (both := out.pop("to_kv.weight", None)) is not None:
        out["attn.k_proj_weight"], out["attn.v_proj_weight"] = both.chunk(2)
    return _with_conch_positions(out, model)


def _with_conch_positions(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Resample position embeddings to the model's patch grid, as in CONCH's own code."""
    name = "model.pos_embed"
    if name in tensors and tensors[name].shape != model.state_dict()[name].shape:
        grid: Any = model.model.patch_embed.grid_size  # type: ignore[union-attr]
        tensors[name] = resample_abs_pos_embed(
            tensors[name], list(grid), interpolation="bilinear", antialias=False
        )
    return tensors


def from_musk(weights: Mapping[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of MUSK's image tower for timm's BEiT-3.

    The first two position embeddings belong to no token, as is usual in fairseq, and are dropped.
    """
    out = _joined(renamed(weights, MUSK), ("q_proj", "k_proj", "v_proj"))
    if "pos_embed" in out:
        out["pos_embed"] = out["pos_embed"][None, 2:]
    return out


def from_swin(weights: Mapping[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of timm's Swin, from before version 0.8 or since, to the current names."""
    is_old = any(name.startswith("layers.0.downsample.") for name in weights)
    return renamed(weights, OLD_SWIN if is_old else SWIN)


def by_timm_names(
    weights: Mapping[str, Tensor], layout: Layout, model: nn.Module
) -> Mapping[str, Tensor]:
    """Rename the tensors of a recipe's weights file for its network.

    Args:
        weights: tensors by name, as returned by `read`.
        layout: naming scheme of the tensors.
        model: the network, as built by `loading.build_network`.
    """
    return BY_LAYOUT[layout](weights, model) if layout in BY_LAYOUT else weights


def in_order(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename tensors by position, for files with timm's order but other names.

    `fit` then compares the shapes. A classifier at the end is left out.

    Args:
        weights: tensors by name, as returned by `read`.
        model: a network of the architecture.
    """
    return dict(zip(model.state_dict(), weights.values(), strict=False))


def _set_positions(tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Adapt position embeddings in place to the model's patch grid and its class token."""
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
