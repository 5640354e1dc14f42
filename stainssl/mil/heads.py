"""Heads: the networks that turn a bag of tile embeddings into the logits of its label."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class PoolingHead(nn.Module, ABC):
    r"""A head that pools tiles by weights that sum to one.

    .. math::
        a_n = \frac{\exp s(h_n)}{\sum_m \exp s(h_m)}, \quad z = \sum_n a_n h_n, \quad
        \text{logits} = c(z), \quad h_n = e(x_n)

    A head says what `embed` (:math:`e`), `score` (:math:`s`) and `classify` (:math:`c`) are.
    Because tiles meet only in the two sums, a bag of any length can be pooled in blocks.
    """

    @abstractmethod
    def embed(self, features: Tensor) -> Tensor:
        """(B, N, D) float32 features → (B, N, H) tile representations."""

    @abstractmethod
    def score(self, embedded: Tensor) -> Tensor:
        """(B, N, H) tile representations → (B, N) attention before the softmax."""

    @abstractmethod
    def classify(self, pooled: Tensor) -> Tensor:
        """(B, H) pooled representations → (B, C) logits."""

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Logits of padded bags.

        Args:
            features: (B, N, D) float32.
            mask: (B, N) bool, true where there is a tile; at least one true a row.

        Returns:
            (B, C) logits.
        """
        embedded = self.embed(features)
        weights = masked_softmax(self.score(embedded), mask)
        return self.classify(torch.einsum("bn,bnh->bh", weights, embedded))

    def attention(self, features: Tensor, mask: Tensor) -> Tensor:
        """(B, N) weights that sum to one over the tiles of each bag and are 0 at padding."""
        return masked_softmax(self.score(self.embed(features)), mask)

    def stream(self, blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits and attention of one bag given in blocks.

        The sums are kept relative to the largest score so far, so that no exponential overflows
        and only one block is held at a time.

        Args:
            blocks: (n_i, D) float32 each, all tiles of the bag, at least one.

        Returns:
            (C,) logits and (N,) attention, equal to `forward` and `attention` on the whole bag.
        """
        scores: list[Tensor] = []
        peak, mass, pooled = torch.tensor(-torch.inf), torch.tensor(0.0), torch.tensor(0.0)
        for block in blocks:
            embedded = self.embed(block[None])
            score = self.score(embedded)
            new_peak = torch.maximum(peak, score.max())
            kept = torch.exp(peak - new_peak)
            weight = torch.exp(score - new_peak)
            mass = mass * kept + weight.sum()
            pooled = pooled * kept + torch.einsum("bn,bnh->bh", weight, embedded)
            peak = new_peak
            scores.append(score[0])
        return self.classify(pooled / mass)[0], torch.softmax(torch.cat(scores), dim=0)


class MeanHead(PoolingHead):
    r"""Mean pooling and a linear layer: every tile weighs the same.

    .. math:: z = \frac{1}{N} \sum_n x_n, \quad \text{logits} = W z + b
    """

    def __init__(self, dim: int, classes: int, hidden: int, dropout: float) -> None:
        """`hidden` is not used: the one layer maps features to classes."""
        super().__init__()
        del hidden
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, classes)

    def embed(self, features: Tensor) -> Tensor:
        return features

    def score(self, embedded: Tensor) -> Tensor:
        return embedded.new_zeros(embedded.shape[:-1])

    def classify(self, pooled: Tensor) -> Tensor:
        return self.classifier(self.dropout(pooled))


class GatedAttentionHead(PoolingHead):
    r"""Gated attention, Ilse et al., *Attention-based deep multiple instance learning* (ICML 2018).

    .. math::
        h_n = \text{ReLU}(P x_n + p), \quad
        s_n = w^\top \big(\tanh(V h_n + v) \odot \sigma(U h_n + u)\big), \quad
        \text{logits} = W \sum_n \text{softmax}(s)_n h_n + b

    with the projection :math:`P` to `hidden` features that pathology uses of it (Lu et al., CLAM,
    2021) and `hidden // 2` attention units. It has a class's logit each, where the paper's own is
    binary.
    """

    def __init__(self, dim: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        units = max(hidden // 2, 1)
        self.project = nn.Linear(dim, hidden)
        self.tanh_branch = nn.Linear(hidden, units)
        self.sigmoid_branch = nn.Linear(hidden, units)
        self.weigh = nn.Linear(units, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, classes)

    def embed(self, features: Tensor) -> Tensor:
        return torch.relu(self.project(features))

    def score(self, embedded: Tensor) -> Tensor:
        gate = torch.sigmoid(self.sigmoid_branch(embedded))
        return self.weigh(torch.tanh(self.tanh_branch(embedded)) * gate).squeeze(-1)

    def classify(self, pooled: Tensor) -> Tensor:
        # Dropped here and not at each tile: drawing a number per tile and unit costs as much as
        # the attention itself.
        return self.classifier(self.dropout(pooled))


HEADS: dict[str, type[PoolingHead]] = {"mean": MeanHead, "abmil": GatedAttentionHead}


def create(kind: str, dim: int, classes: int, hidden: int, dropout: float) -> PoolingHead:
    """The head that the config calls `kind`.

    Args:
        kind: a key of `HEADS`.
        dim: width D of the tile embeddings.
        classes: number of classes C.
        hidden: width of the tile representation, for heads that have one.
        dropout: share of units dropped in training, [0, 1).
    """
    return HEADS[kind](dim, classes, hidden, dropout)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where `mask` is true, 0 elsewhere; both (B, N)."""
    return torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
