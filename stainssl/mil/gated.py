"""A head that combines the slide vector with clinical columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stainssl.mil.pooling import PoolingHead


class GatedFusionHead(PoolingHead):
    r"""A pooling head with a gated multimodal unit for slide vector and clinical columns.

    Arevalo et al., *Gated multimodal units for information fusion* (ICLR workshop, 2017):

    .. math::
        h_s = \tanh(W_s z), \quad h_c = \tanh(W_c c), \quad g = \sigma(W_g [z, c]), \quad
        \text{logits} = W (g \odot h_s + (1 - g) \odot h_c)

    with the slide vector :math:`z` of the pooling head and the clinical columns :math:`c`. The
    columns are appended to the features of every tile, so that a bag is one tensor as for any other
    head. Pooling leaves them unchanged, since the weights sum to one.
    """

    def __init__(
        self, slides: PoolingHead, width: int, columns: int, classes: int, hidden: int,
        dropout: float,
    ) -> None:  # fmt: skip
        """Wrap a pooling head, whose own classifier is not used.

        Args:
            slides: head that embeds and weights the tiles.
            width: width H of its tile representations.
            columns: number F of clinical features, at least 1.
            classes: number of outputs C.
            hidden: width of the multimodal unit.
            dropout: dropout probability for the slide vector, [0, 1).
        """
        super().__init__()
        self.slides, self.columns = slides, columns
        self.dropout = nn.Dropout(dropout)
        self.of_slide = nn.Linear(width, hidden)
        self.of_columns = nn.Linear(columns, hidden)
        self.gate = nn.Linear(width + columns, hidden)
        self.classifier = nn.Linear(hidden, classes)

    def embed(self, features: Tensor) -> Tensor:
        """(B, N, D + F) tiles with the bag's clinical columns appended → (B, N, H + F)."""
        tiles, columns = features[..., : -self.columns], features[..., -self.columns :]
        return torch.cat([self.slides.embed(tiles), columns], dim=-1)

    def score(self, embedded: Tensor) -> Tensor:
        """See `PoolingHead.score`; clinical columns have no influence."""
        return self.slides.score(embedded[..., : -self.columns])

    def classify(self, pooled: Tensor) -> Tensor:
        """(B, H + F) slide vectors and clinical columns → (B, C) logits."""
        slide, columns = self.dropout(pooled[:, : -self.columns]), pooled[:, -self.columns :]
        gate = torch.sigmoid(self.gate(torch.cat([slide, columns], dim=-1)))
        mixed = gate * torch.tanh(self.of_slide(slide))
        mixed = mixed + (1 - gate) * torch.tanh(self.of_columns(columns))
        return self.classifier(mixed)
