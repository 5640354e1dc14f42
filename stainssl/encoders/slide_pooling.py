"""Gated attention pooling of a slide's tiles (Ilse et al., *Attention-based deep MIL*, 2018)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stainssl.errors import StainsslError

ModelConfig = Mapping[str, Any]  # content of the config beside the weights
BLOCK = 8192  # tiles per pass, which bounds the memory


class GatedScore(nn.Module):
    """Attention scores of tiles, by tanh and a sigmoid gate: (n, E) → (n, 1)."""

    def __init__(self, width: int, hidden: int) -> None:
        """Random weights; `width` is E."""
        super().__init__()
        self.attention_a = nn.Sequential(nn.Linear(width, hidden), nn.Tanh())
        self.attention_b = nn.Sequential(nn.Linear(width, hidden), nn.Sigmoid())
        self.attention_c = nn.Linear(hidden, 1)

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, E) embeddings → (n, 1) scores, before the softmax over tiles."""
        score: Tensor = self.attention_c(self.attention_a(vectors) * self.attention_b(vectors))
        return score


class GatedPooling(nn.Module):
    """Mean of a slide's tile embeddings, weighted by gated attention.

    Attributes:
        embed: layers applied to every tile first; the output is reshaped to (N, width, heads).
        attention: one `GatedScore` per head.
        pools_given: whether the given embeddings are averaged, instead of the output of `embed`.
        projector: applied to the flattened means of all heads.
    """

    def __init__(
        self, embed: nn.Sequential, width: int, hidden: int, *, heads: int = 1,
        pools_given: bool = False, projector: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """Random weights; `width` and `hidden` are per head."""
        super().__init__()
        self.embed, self.pools_given = embed, pools_given
        self.attention = nn.ModuleList(GatedScore(width, hidden) for _ in range(heads))
        self.projector = projector or nn.Identity()

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, D) tile embeddings → (D',) slide embedding."""
        blocks = vectors.split(BLOCK)
        weights = torch.cat([self._scores(block) for block in blocks]).softmax(dim=0).split(BLOCK)
        pooled = sum(
            torch.einsum("nh,neh->eh", weight, self._pooled(block))
            for weight, block in zip(weights, blocks, strict=True)
        )
        assert isinstance(pooled, Tensor)
        out: Tensor = self.projector(pooled.flatten())
        return out

    def _heads(self, block: Tensor) -> Tensor:
        out: Tensor = self.embed(block)
        return out.unflatten(-1, (-1, len(self.attention)))

    def _scores(self, block: Tensor) -> Tensor:
        embedded = self._heads(block)
        heads = enumerate(self.attention)
        return torch.cat([score(embedded[..., head]) for head, score in heads], dim=1)

    def _pooled(self, block: Tensor) -> Tensor:
        return block[..., None] if self.pools_given else self._heads(block)


def one_layer(_: ModelConfig, *, given: int, hidden: int, pools_given: bool) -> nn.Module:
    """Network of CHIEF and FEATHER: one layer of 512 units, one head.

    Args:
        given: dimension of the tile embeddings.
        hidden: units of the attention.
        pools_given: see `GatedPooling`.
    """
    embed = nn.Sequential(nn.Linear(given, 512), nn.ReLU())
    return GatedPooling(embed, 512, hidden, pools_given=pools_given)


def three_layers(config: ModelConfig) -> nn.Module:
    """Network of MADELEINE: three layers and several heads, sized by its config.

    Raises:
        StainsslError: the config has another activation than softmax.
    """
    if (found := config.get("activation", "softmax")) != "softmax":
        raise StainsslError(
            f"madeleine: its config has activation {found!r}; only softmax is supported."
        )
    given, width = int(config["patch_embedding_dim"]), int(config["wsi_encoder_hidden_dim"])
    heads = int(config["n_heads"])
    sizes = ((given, width), (width, width), (width, width * heads))
    layers = [
        (nn.Linear(first, last), nn.LayerNorm(last), nn.GELU(), nn.Dropout(0.1))
        for first, last in sizes
    ]
    embed = nn.Sequential(*(one for layer in layers for one in layer))
    projector = nn.Linear(width * heads, width)
    return GatedPooling(embed, width, 512, heads=heads, projector=projector)


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "one layer": one_layer,
    "three layers": three_layers,
}
