"""Parts of published encoders that timm lacks: a stem, and poolings of tokens to an embedding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

POOL_HEADS = 8  # attention heads of CONCH's pooler


class ConvStem(PatchEmbed):
    """CTransPath's stem: convolutions to a quarter of the side, in place of Swin's 4 px patches.

    Wang et al. 2022 (https://doi.org/10.1016/j.media.2022.102559); layers as in ctran.py of
    github.com/Xiyue-Wang/TransPath.

    Args:
        embed_dim: C, a multiple of 8.
        arguments: of timm's `PatchEmbed`.
    """

    def __init__(self, embed_dim: int, **arguments: Any) -> None:
        super().__init__(embed_dim=embed_dim, **arguments)
        narrow, wide = embed_dim // 8, embed_dim // 4
        stem: Any = (*_halved(3, narrow), *_halved(narrow, wide), nn.Conv2d(wide, embed_dim, 1))
        self.proj: Any = nn.Sequential(*stem)


def _halved(channels: int, width: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width), nn.ReLU()


class Pooled(nn.Module):
    """Base class of a timm network with a pooling of its output to one embedding.

    Args:
        model: a timm network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.pretrained_cfg: Any = model.pretrained_cfg


class ClassAndMean(Pooled):
    """A transformer's class token and the mean of its patch tokens, concatenated."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, 2C); register tokens are left out."""
        tokens = self.model.forward_features(images)  # type: ignore[operator]
        patches = tokens[:, self.model.num_prefix_tokens :]
        return torch.cat([tokens[:, 0], patches.mean(1)], dim=-1)


class Mean(Pooled):
    """The mean of a transformer's patch tokens."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, C); class token and register tokens are left out."""
        tokens = self.model.forward_features(images)  # type: ignore[operator]
        return tokens[:, self.model.num_prefix_tokens :].mean(1)


class TwoScales(Pooled):
    """The class token of an image and the mean of those of its quarters at twice the size.

    MUSK's README recommends this for linear probes and multiple-instance learning (`ms_aug`, Shi
    et al. 2024, https://arxiv.org/abs/2403.13043).
    """

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, 2C)."""
        side = images.shape[-1]
        large = F.interpolate(images, (2 * side, 2 * side), mode="bicubic")
        corners = [(y, x) for y in (0, side) for x in (0, side)]
        quarters = [self.model(large[..., y : y + side, x : x + side]) for y, x in corners]
        return torch.cat([self.model(images), torch.stack(quarters).mean(0)], dim=-1)


class AttentionPool(Pooled):
    """Attention pooling of a transformer's tokens by one learned query, before the projection.

    CONCH's contrastive pooler (Lu et al. 2024, https://doi.org/10.1038/s41591-024-02856-4), as in
    CoCa (https://arxiv.org/abs/2205.01917).

    Args:
        model: a timm transformer of width C.
        dim: D, embedding dimension.
        bias: whether the linear maps of the attention have a bias.
    """

    def __init__(self, model: nn.Module, dim: int, bias: bool = True) -> None:
        super().__init__(model)
        width: Any = model.num_features
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.ln_q, self.ln_k, self.ln = nn.LayerNorm(dim), nn.LayerNorm(width), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(
            dim, POOL_HEADS, bias=bias, kdim=width, vdim=width, batch_first=True
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, D)."""
        tokens = self.ln_k(self.model.forward_features(images))  # type: ignore[operator]
        query = self.ln_q(self.query).expand(len(images), -1, -1)
        pooled, _ = self.attn(query, tokens, tokens, need_weights=False)
        return self.ln(pooled[:, 0])


class Projection(Pooled):
    """KEEP's projection of the class token by two layers, scaled to length 1.

    https://arxiv.org/abs/2412.13126

    Args:
        model: a timm transformer of width C.
        dim: D, embedding dimension.
    """

    def __init__(self, model: nn.Module, dim: int) -> None:
        super().__init__(model)
        width: Any = model.num_features
        self.projection = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, D)."""
        return F.normalize(self.projection(self.model(images)), dim=-1)
