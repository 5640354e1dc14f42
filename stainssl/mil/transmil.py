"""TransMIL: self-attention between tiles, at a cost linear in their number."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from stainssl.mil.head import MilHead

HEADS = 4
PINV_STEPS = 6  # iterations of the pseudo-inverse


class NystromAttention(nn.Module):
    r"""Self-attention via landmarks: Xiong et al., *Nyströmformer* (AAAI 2021).

    .. math::
        \text{softmax}\Big(\frac{Q\tilde K^\top}{\sqrt d}\Big)
        \text{softmax}\Big(\frac{\tilde Q\tilde K^\top}{\sqrt d}\Big)^{+}
        \text{softmax}\Big(\frac{\tilde Q K^\top}{\sqrt d}\Big) V

    where :math:`\tilde Q, \tilde K` are means over runs of consecutive tokens. It takes one bag
    without padding; the tokens that pad the first run are masked.
    """

    def __init__(self, width: int, landmarks: int) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.heads = HEADS if width % HEADS == 0 else 1
        self.qkv = nn.Linear(width, 3 * width, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H) tokens → (N, H) outputs, (N,) attention of the first token to each token."""
        n = len(tokens)
        run = math.ceil(n / self.landmarks)
        groups = math.ceil(n / run)  # none is empty
        fill = groups * run - n
        present = torch.arange(groups * run) >= fill
        split = self.qkv(pad(tokens, (0, 0, fill, 0))).chunk(3, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(0, 1) for x in split)  # (h, N, d)
        q = q * q.shape[-1] ** -0.5
        count = present.view(groups, run).sum(dim=1)[:, None]
        q_mean, k_mean = (x.unflatten(1, (groups, run)).sum(dim=2) / count for x in (q, k))
        to_landmarks = torch.softmax(q @ k_mean.mT, dim=-1)
        between = torch.softmax(q_mean @ k_mean.mT, dim=-1)
        from_tokens = (q_mean @ k.mT).masked_fill(~present, -torch.inf).softmax(dim=-1)
        left = to_landmarks @ pseudo_inverse(between)
        mixed = (left @ (from_tokens @ v)).transpose(0, 1).flatten(1)
        first = (left[:, fill][:, None] @ from_tokens).mean(dim=0)[0]
        return mixed[fill:], first[fill:]


def pseudo_inverse(x: Tensor, steps: int = PINV_STEPS) -> Tensor:
    """(h, m, m) row-stochastic matrices → their Moore–Penrose inverses, by iteration.

    Razavi et al. 2014, in the form of Nyströmformer's equation 16.
    """
    one = torch.eye(x.shape[-1])
    z = x.mT / (x.sum(dim=-2).max() * x.sum(dim=-1).max())
    for _ in range(steps):
        xz = x @ z
        z = 0.25 * z @ (13 * one - xz @ (15 * one - xz @ (7 * one - xz)))
    return z


class PyramidPositions(nn.Module):
    """TransMIL's PPEG: tokens in a square, plus three depthwise convolutions of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(1 + S², H) tokens, the class token first → the same shape."""
        side = math.isqrt(len(tokens) - 1)
        square = tokens[1:].T.unflatten(1, (side, side))[None]
        square = square + torch.stack([c(square) for c in self.convolutions]).sum(dim=0)
        return torch.cat([tokens[:1], square[0].flatten(1).T])


class TransformerHead(MilHead):
    r"""TransMIL: Shao et al. (NeurIPS 2021), algorithm 2.

    A class token and the tiles, padded to a square by repeating the first ones, pass through
    attention, PPEG and attention, with layer normalization and residual connections; the class
    token is classified. Because of PPEG, the result depends on the order of the tiles. `attention`
    is that of the class token in the last layer, with negative values (of the approximation) set to
    0. For one bag, logits and attention equal those of torchmil's TransMIL, which takes no mask and
    builds an N × N matrix to show attention.
    """

    def __init__(self, dim: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        landmarks = max(hidden // 2, 1)
        self.project = nn.Linear(dim, hidden)
        self.token = nn.Parameter(torch.randn(1, hidden))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.layers = nn.ModuleList(NystromAttention(hidden, landmarks) for _ in range(2))
        self.positions = PyramidPositions(hidden)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, classes)

    def embed(self, features: Tensor) -> Tensor:
        """See `MilHead.embed`."""
        return torch.relu(self.project(features))

    def pool(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `MilHead.pool`."""
        logits, attention = [], torch.zeros(mask.shape)
        for i, present in enumerate(mask):
            token, weights = self.one_bag(embedded[i, present])
            logits.append(self.classifier(self.dropout(token)))
            attention[i, present] = weights.detach()
        return torch.stack(logits), attention

    def one_bag(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H) tiles → (H,) class token and its (N,) attention to the tiles."""
        n = len(tiles)
        side = math.ceil(math.sqrt(n))
        tokens = torch.cat([self.token, tiles, tiles[: side**2 - n]])
        tokens = tokens + self.layers[0](self.norms[0](tokens))[0]
        tokens = self.positions(tokens)
        mixed, attention = self.layers[1](self.norms[1](tokens))
        weights = attention[1 : n + 1].clamp_min(0) + 1e-12
        return self.norms[2](tokens[0] + mixed[0]), weights / weights.sum()
