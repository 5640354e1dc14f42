"""Base class of heads that pool tiles by a weighted mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stainssl.mil.head import MilHead, masked_softmax


class PoolingHead(MilHead):
    r"""A head that pools tiles by a weighted mean.

    .. math::
        a_n = \frac{\exp s(h_n)}{\sum_m \exp s(h_m)}, \quad z = \sum_n a_n h_n, \quad
        \text{logits} = c(z), \quad h_n = e(x_n)

    Subclasses define `embed` (:math:`e`), `score` (:math:`s`) and `classify` (:math:`c`). Since
    tiles interact only in the two sums, a bag of any length can be pooled in blocks.

    Attributes:
        classifier: the last layer of `classify`.
    """

    classifier: nn.Linear

    @abstractmethod
    def score(self, embedded: Tensor) -> Tensor:
        """(B, N, H) tile representations → (B, N) attention scores before the softmax."""

    @abstractmethod
    def classify(self, pooled: Tensor) -> Tensor:
        """(B, H) pooled representations → (B, C) logits."""

    def pool(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `MilHead.pool`."""
        weights = masked_softmax(self.score(embedded), mask)
        return self.classify(torch.einsum("bn,bnh->bh", weights, embedded)), weights

    def stream(self, blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """See `MilHead.stream`; only one block is in memory at a time.

        Sums are relative to the largest score so far, so that no exponential overflows.
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
