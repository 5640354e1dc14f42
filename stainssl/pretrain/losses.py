"""The contrastive loss, and measures that distinguish a useful embedding from a collapsed one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(
    first: Tensor, second: Tensor, temperature: float, negatives: Tensor | None = None
) -> Tensor:
    """Normalized temperature-scaled cross-entropy of Chen et al. 2020 (SimCLR).

    The two views of an image are each other's positive; the 2B − 2 views of the other images of
    the batch are negatives.

    Args:
        first: (B, D) projections of the first view, B ≥ 2.
        second: (B, D) projections of the second view, in the same order.
        temperature: divides the cosine similarities.
        negatives: (Q, D) unit vectors of earlier images, which are negatives of every view.

    Returns:
        Mean over the 2B views, a scalar; log(2B − 1 + Q) if all projections are equal.
    """
    z = F.normalize(torch.cat([first, second]).float(), dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    if negatives is not None:
        logits = torch.cat([logits, z @ negatives.T / temperature], 1)
    count = len(first)
    positive = torch.arange(2 * count, device=z.device).roll(count)
    return F.cross_entropy(logits, positive)


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance between the unit vectors of two views (Wang & Isola 2020); 0 is best.

    Args:
        first, second: (N, D) embeddings of the two views, in the same order.
    """
    apart = F.normalize(first, dim=1) - F.normalize(second, dim=1)
    return float(apart.square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """log E exp(−2 d²) over pairs of unit vectors (Wang & Isola 2020); lower is more uniform.

    Args:
        features: (N, D) embeddings of one view, N ≥ 2.

    Returns:
        At most 0, the value if all embeddings are equal.
    """
    return float(F.pdist(F.normalize(features, dim=1)).square().mul(-2).exp().mean().log())


def nearest_neighbours(
    features: Tensor, classes: Tensor, groups: Tensor, neighbours: int = 20
) -> float:
    """Balanced accuracy of a vote of the nearest neighbours from other groups, by cosine.

    Args:
        features: (N, D) embeddings, which are centred.
        classes: (N,) int64; tiles of class −1 (unknown) are left out.
        groups: (N,) int64, such as patients; tiles of the same group do not vote.
        neighbours: number of neighbours that vote.

    Returns:
        Mean over the classes of the share of tiles that are classified correctly; NaN with fewer
        than two classes or fewer than two groups.
    """
    known = classes >= 0
    features, classes, groups = features[known], classes[known], groups[known]
    present = classes.unique()
    if len(present) < 2 or len(groups.unique()) < 2:
        return float("nan")
    unit = F.normalize(features - features.mean(0), dim=1)
    cosine = (unit @ unit.T).masked_fill(groups[:, None] == groups[None], float("-inf"))
    near = cosine.topk(min(neighbours, len(unit) - 1), dim=1)
    votes = F.one_hot(classes[near.indices]) * near.values.isfinite()[..., None]
    right = (votes.sum(1).argmax(1) == classes).float()
    return float(torch.stack([right[classes == c].mean() for c in present]).mean())
