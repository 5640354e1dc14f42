"""What every head is: from padded bags of tile embeddings to logits and attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]  # (B, C) outputs, (B,) labels → (B,)


class MilHead(nn.Module, ABC):
    """A network from padded bags to logits, and to the attention that each tile got.

    Attributes:
        needs_classes: whether its loss is of classes alone.
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
            mask: (B, N) bool, true where there is a tile; at least one true a row.

        Returns:
            (B, C) logits.
        """
        return self.pool(self.embed(features), mask)[0]

    def attention(self, features: Tensor, mask: Tensor) -> Tensor:
        """(B, N) weights that sum to one over the tiles of each bag and are 0 at padding."""
        return self.pool(self.embed(features), mask)[1]

    def losses(self, features: Tensor, mask: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        """What training minimises the mean of.

        Args:
            features, mask: as `forward` takes them.
            labels: (B,) of the bags: class indices, or numbers.
            loss: of the task.

        Returns:
            (B,): the loss, and what a head adds to it.
        """
        return loss(self(features, mask), labels)

    def stream(self, blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits and attention of one bag given in blocks.

        Representations are kept, which are narrower than features; features are not.

        Args:
            blocks: (n_i, D) float32 each, all tiles of the bag, at least one.

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
    """(B,) cross-entropy of (B, C) logits, each times the weight of its class."""
    return nn.functional.cross_entropy(logits, labels, weight=weights, reduction="none")
