"""Base class of MIL heads: padded bags of tile embeddings to logits and attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]  # (B, C) outputs, (B,) labels → (B,)


class MilHead(nn.Module, ABC):
    """A network that maps padded bags to logits and to one attention weight per tile.

    Attributes:
        needs_classes: whether the head needs a single label of unordered classes.
    """

    needs_classes = False

    @abstractmethod
    def embed(self, features: Tensor) -> Tensor:
        """(B, N, D) float32 features → (B, N, H) tile representations."""

    @abstractmethod
    def pool(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, H) tile representations and (B, N) mask → (B, C) logits, (B, N) attention."""

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Logits of padded bags.

        Args:
            features: (B, N, D) float32.
            mask: (B, N) bool, true where there is a tile; at least one per row.

        Returns:
            (B, C) logits.
        """
        return self.pool(self.embed(features), mask)[0]

    def attention(self, features: Tensor, mask: Tensor) -> Tensor:
        """(B, N) attention weights: they sum to one in each bag and are 0 at padding."""
        return self.pool(self.embed(features), mask)[1]

    def losses(self, features: Tensor, mask: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        """Training loss of each bag, including the head's own terms.

        Args:
            features, mask: see `forward`.
            labels: (B,) labels of the bags: class indices, or numbers.
            loss: the task's loss.

        Returns:
            (B,) losses, whose mean is minimized.
        """
        return loss(self(features, mask), labels)

    def stream(self, blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits and attention of one bag that is passed in blocks.

        Only the tile representations, which are narrower than the features, are kept in memory.

        Args:
            blocks: (n_i, D) float32 features; together all tiles of the bag, at least one.

        Returns:
            (C,) logits and (N,) attention, equal to `forward` and `attention` on the whole bag.
        """
        embedded = torch.cat([self.embed(block[None]) for block in blocks], dim=1)
        mask = torch.ones(embedded.shape[:2], dtype=torch.bool)
        logits, attention = self.pool(embedded, mask)
        return logits[0], attention[0]


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where `mask` is true, 0 elsewhere; both (B, N)."""
    return torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """(B,) cross-entropy of (B, C) logits, weighted by class; `weights` has shape (C,)."""
    return nn.functional.cross_entropy(logits, labels, weight=weights, reduction="none")
