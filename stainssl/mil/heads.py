"""MIL heads: networks that map a bag of tile embeddings to the logits of its label."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stainssl.errors import StainsslError
from stainssl.mil.gated import GatedFusionHead
from stainssl.mil.head import Loss, MilHead, masked_softmax
from stainssl.mil.pooling import PoolingHead
from stainssl.mil.transmil import TransformerHead


class MeanHead(PoolingHead):
    r"""Mean pooling and a linear layer: all tiles have the same weight.

    .. math:: z = \frac{1}{N} \sum_n x_n, \quad \text{logits} = W z + b
    """

    def __init__(self, dim: int, classes: int, hidden: int, dropout: float) -> None:
        """`hidden` is not used: the only layer maps features to classes."""
        super().__init__()
        del hidden
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, classes)

    def embed(self, features: Tensor) -> Tensor:
        """See `MilHead.embed`."""
        return features

    def score(self, embedded: Tensor) -> Tensor:
        """See `PoolingHead.score`."""
        return embedded.new_zeros(embedded.shape[:-1])

    def classify(self, pooled: Tensor) -> Tensor:
        """See `PoolingHead.classify`."""
        return self.classifier(self.dropout(pooled))


class GatedAttentionHead(PoolingHead):
    r"""Gated attention, Ilse et al., *Attention-based deep multiple instance learning* (ICML 2018).

    .. math::
        h_n = \text{ReLU}(P x_n + p), \quad
        s_n = w^\top \big(\tanh(V h_n + v) \odot \sigma(U h_n + u)\big), \quad
        \text{logits} = W \sum_n \text{softmax}(s)_n h_n + b

    with a projection :math:`P` to `hidden` features, as is usual in pathology (Lu et al., CLAM,
    2021), and `hidden // 2` attention units. There is one logit per class; the paper's model is
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
        """See `MilHead.embed`."""
        return torch.relu(self.project(features))

    def score(self, embedded: Tensor) -> Tensor:
        """See `PoolingHead.score`."""
        gate = torch.sigmoid(self.sigmoid_branch(embedded))
        return self.weigh(torch.tanh(self.tanh_branch(embedded)) * gate).squeeze(-1)

    def classify(self, pooled: Tensor) -> Tensor:
        """See `PoolingHead.classify`."""
        # Dropout acts on the slide vector, not on tiles: a random number per tile and unit would
        # cost as much as the attention itself.
        return self.classifier(self.dropout(pooled))


class ClamHead(GatedAttentionHead):
    r"""CLAM-SB.

    Lu et al., *Data-efficient and weakly supervised computational pathology on whole-slide images*
    (Nature Biomedical Engineering, 2021).

    Gated attention with an auxiliary tile classifier per class in training. The classifier of the
    bag's class learns to separate the `k` tiles with the highest attention (positive) from the `k`
    with the lowest (negative); for those of the other classes, as classes are mutually exclusive,
    the `k` tiles with the highest attention are negative:

    .. math::
        L = c_1 L_\text{bag} + (1 - c_1)\,\frac{1}{C} \Big(
            \frac{1}{2k} \sum_{t \in \text{top}} \ell(g_y(h_t), 1)
            + \frac{1}{2k} \sum_{t \in \text{bottom}} \ell(g_y(h_t), 0)
            + \sum_{c \neq y} \frac{1}{k} \sum_{t \in \text{top}} \ell(g_c(h_t), 0) \Big)

    with :math:`c_1 = 0.7`, :math:`k = 8` and the smooth SVM loss of Berrada et al. (ICLR 2018),
    :math:`\ell = \log(1 + \exp(1 + g_\text{wrong} - g_\text{right}))`. torchmil's CLAM is limited
    to two classes and treats padding as tiles.
    """

    needs_classes = True
    TILES = 8  # k; at most half of the bag's tiles
    BAG_SHARE = 0.7  # c_1

    def __init__(self, dim: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__(dim, classes, hidden, dropout)
        self.tile_classifiers = nn.Linear(hidden, 2 * classes)

    def losses(self, features: Tensor, mask: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        """See `MilHead.losses`."""
        embedded = self.embed(features)
        logits, attention = self.pool(embedded, mask)
        of_tiles = torch.stack([
            self.tile_loss(embedded[i], attention[i].detach(), mask[i], int(labels[i]))
            for i in range(len(labels))
        ])  # fmt: skip
        of_bags = loss(logits, labels)
        return self.BAG_SHARE * of_bags + (1 - self.BAG_SHARE) * of_tiles

    def tile_loss(self, embedded: Tensor, attention: Tensor, mask: Tensor, label: int) -> Tensor:
        """Tile loss of one bag: (N, H) representations, (N,) attention and mask → scalar."""
        k = min(self.TILES, int(mask.sum()) // 2)
        if not k:
            return embedded.new_zeros(())
        top = attention.masked_fill(~mask, -torch.inf).topk(k).indices
        bottom = attention.masked_fill(~mask, torch.inf).topk(k, largest=False).indices
        scores = self.tile_classifiers(embedded[torch.cat([top, bottom])]).unflatten(1, (-1, 2))
        margin = scores[..., 1] - scores[..., 0]  # (2k, C): positive for tiles in the class
        signs = -torch.ones_like(margin)
        signs[:k, label] = 1.0
        each = nn.functional.softplus(1.0 - signs * margin)
        own = each[:, label].mean()
        others = each[:k].mean(dim=0).sum() - each[:k, label].mean()
        return (own + others) / margin.shape[1]


class DualStreamHead(MilHead):
    r"""DSMIL: Li, Li and Eliceiri, *Dual-stream multiple instance learning network* (CVPR 2021).

    .. math::
        s_n = W_0 h_n, \quad m_c = \arg\max_n s_{nc}, \quad
        a_{nc} = \text{softmax}_n\big(q_n^\top q_{m_c} / \sqrt{d}\big), \quad q_n = W_q h_n, \quad
        b_c = \sum_n a_{nc} W_v h_n, \quad
        \text{logits} = \tfrac{1}{2}\big(\max_n s_n + W_b [b_1, \dots, b_C]\big)

    Training minimizes the mean of the losses of the two streams. The attention is averaged over
    classes. torchmil's DSMIL is limited to two classes and may choose padding as the critical tile.
    """

    def __init__(self, dim: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(dim, hidden)
        self.tile_classifier = nn.Linear(hidden, classes)
        self.query = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.bag_classifier = nn.Linear(classes * hidden, classes)

    def embed(self, features: Tensor) -> Tensor:
        """See `MilHead.embed`."""
        return torch.relu(self.project(features))

    def streams(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C) logits of the critical tiles, (B, C) logits of the bag, (B, N, C) attention."""
        scores = self.tile_classifier(embedded).masked_fill(~mask[..., None], -torch.inf)
        largest, critical = scores.max(dim=1)
        queries = self.query(embedded)
        chosen = torch.gather(queries, 1, critical[..., None].expand(-1, -1, queries.shape[-1]))
        likeness = torch.einsum("bnh,bch->bcn", queries, chosen) / queries.shape[-1] ** 0.5
        attention = masked_softmax(likeness, mask[:, None])
        pooled = torch.einsum("bcn,bnh->bch", attention, self.value(embedded))
        logits = self.bag_classifier(self.dropout(pooled.flatten(1)))
        return largest, logits, attention.transpose(1, 2)

    def pool(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `MilHead.pool`."""
        of_tile, of_bag, attention = self.streams(embedded, mask)
        return (of_tile + of_bag) / 2, attention.mean(dim=-1)

    def losses(self, features: Tensor, mask: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        """See `MilHead.losses`."""
        of_tile, of_bag, _ = self.streams(self.embed(features), mask)
        both = [loss(logits, labels) for logits in (of_tile, of_bag)]
        return torch.stack(both).mean(dim=0)


HEADS: dict[str, type[MilHead]] = {
    "mean": MeanHead,
    "abmil": GatedAttentionHead,
    "clam": ClamHead,
    "dsmil": DualStreamHead,
    "transmil": TransformerHead,
}


FUSED = ("mean", "abmil")  # heads that accept clinical columns: they classify a slide vector


def create(
    kind: str, dim: int, classes: int, hidden: int, dropout: float, columns: int = 0
) -> MilHead:
    """Create a head.

    Args:
        kind: a key of `HEADS`.
        dim: width D of the tile embeddings.
        classes: number of outputs C; 1 for a number.
        hidden: width of the tile representation, for heads that have one.
        dropout: dropout probability, [0, 1).
        columns: number of clinical features appended to the features of each tile; 0: none.

    Raises:
        StainsslError: `columns` is not 0 and a head of this kind accepts no clinical columns.
    """
    head = HEADS[kind](dim, classes, hidden, dropout)
    if not columns:
        return head
    if kind not in FUSED:
        raise StainsslError(f"fusion: gated needs a head of kind {' or '.join(FUSED)}, not {kind}.")
    assert isinstance(head, PoolingHead)
    width = head.classifier.in_features
    return GatedFusionHead(head, width, columns, classes, hidden, dropout)
