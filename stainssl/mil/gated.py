"""Slide vector and clinical columns in one head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stainssl.mil.pooling import PoolingHead


class GatedFusionHead(PoolingHead):
    r"""A pooling head whose slide vector meets the clinical columns in a gated multimodal unit.

    Arevalo et al., *Gated multimodal units for information fusion* (ICLR workshop, 2017):

    .. math::
        h_s = \tanh(W_s z), \quad h_c = \tanh(W_c c), \quad g = \sigma(W_g [z, c]), \quad
        \text{logits} = W (g \odot h_s + (1 - g) \odot h_c)

    with the slide vector :math:`z` that the pooling head classifies and the columns :math:`c`. The
    columns follow the features of every tile of a bag, so that a bag is one tensor as for any head;
    weights that sum to one pool them to themselves.
    """

    def __init__(
        self, slides: PoolingHead, width: int, columns: int, classes: int, hidden: int,
        dropout: float,
    ) -> None:  # fmt: skip
        """A head around another, whose classifier is not used.

        Args:
            slides: embeds and weighs tiles.
            width: of its tile representations.
            columns: F clinical features, at least one.
            classes: C outputs.
            hidden: width of the unit.
            dropout: of the slide vector, [0, 1).
        """
        super().__init__()
        self.slides, self.columns = slides, columns
        self.dropout = nn.Dropout(dropout)
        self.of_slide = nn.Linear(width, hidden)
        self.of_columns = nn.Linear(columns, hidden)
        self.gate = nn.Linear(width + columns, hidden)
        self.classifier = nn.Linear(hidden, classes)

    def embed(self, features: Tensor) -> Tensor:
        """(B, N, D + F) tiles, the bag's columns behind each → (B, N, H + F)."""
        tiles, columns = features[..., : -self.columns], features[..., -self.columns :]
        return torch.cat([self.slides.embed(tiles), columns], dim=-1)

    def score(self, embedded: Tensor) -> Tensor:
        """See `PoolingHead.score`: of the tiles alone."""
        return self.slides.score(embedded[..., : -self.columns])

    def classify(self, pooled: Tensor) -> Tensor:
        """(B, H + F) slide vectors and columns → (B, C) logits."""
        slide, columns = self.dropout(pooled[:, : -self.columns]), pooled[:, -self.columns :]
        gate = torch.sigmoid(self.gate(torch.cat([slide, columns], dim=-1)))
        mixed = gate * torch.tanh(self.of_slide(slide))
        mixed = mixed + (1 - gate) * torch.tanh(self.of_columns(columns))
        return self.classifier(mixed)
