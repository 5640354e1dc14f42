"""Geometry of embeddings: cosines and retrieval across stains, effective rank, uniformity."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stainssl.evaluation.stainings import (
    Ints,
    MetricRow,
    Stainings,
    Vectors,
    jackknife_metric,
    mean_metric,
    metric_row,
    plain_weights,
    unit_length,
)

RETRIEVAL_RANKS = (1, 10)


def similarity(stainings: Stainings, seed: int) -> Iterator[MetricRow]:
    """Mean cosine of a tile with itself and with others under the other stain; their margin."""
    first, second = unit_length(stainings.first), unit_length(stainings.second)
    cosine = first @ second.T
    same = np.diagonal(cosine)
    other = (cosine.sum(axis=1) - same) / max(len(cosine) - 1, 1)
    patient = stainings.patient
    yield mean_metric("stain_cosine", same, patient, seed)
    yield mean_metric("other_cosine", other, patient, seed)
    yield mean_metric("stain_margin", same - other, patient, seed)


def retrieval(stainings: Stainings, seed: int) -> Iterator[MetricRow]:
    """How often a tile is among the 1 or 10 nearest to itself under the other stain."""
    patient = stainings.patient
    for top in RETRIEVAL_RANKS:
        hits = retrieval_hits(stainings.first, stainings.second, top)
        yield mean_metric(f"stain_retrieval_top{top}", hits, patient, seed)


def retrieval_hits(first: Vectors, second: Vectors, top: int) -> NDArray[np.float64]:
    """(N,) whether a tile is among the `top` nearest to itself under the other stain.

    Values are 0, 0.5 or 1: the mean of both directions. Ties count against the tile, so that a
    collapsed encoder, for which all tiles are equal, retrieves nothing.

    Args:
        first, second: (N, D) embeddings of the same tiles under two stains.
        top: number of nearest tiles by cosine.
    """
    cosine = unit_length(first) @ unit_length(second).T
    same = np.diagonal(cosine)
    rank = [(matrix >= same[:, None]).sum(axis=1) for matrix in (cosine, cosine.T)]
    return np.mean([r <= top for r in rank], axis=0)


def effective_rank(vectors: Vectors) -> float:
    """Exponential of the entropy of the normalized singular values of centered (N, D) vectors.

    Roy and Vetterli, EUSIPCO 2007. Between 1 (all on one line, or equal) and min(N − 1, D).
    """
    # Eigenvalues of the Gram matrix are found faster than singular values; in single precision
    # their error is of the size of the smaller ones.
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    gram = centred.T @ centred if len(vectors) > vectors.shape[1] else centred @ centred.T
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    if singular.sum() <= 1e-12:
        return 1.0
    share = singular / singular.sum()
    return float(np.exp(-(share * np.log(np.maximum(share, 1e-30))).sum()))


def geometry(stainings: Stainings, seed: int) -> Iterator[MetricRow]:
    """Effective rank, alignment and uniformity (Wang and Isola, ICML 2020).

    Alignment is the mean squared distance between the two stainings of a tile; uniformity is the
    logarithm of the mean Gaussian kernel of two original tiles; both for vectors of unit length.
    """
    patient = stainings.patient
    original = stainings.original
    yield jackknife_metric("effective_rank", lambda kept: effective_rank(original[kept]), patient)
    first, second = unit_length(stainings.first), unit_length(stainings.second)
    yield mean_metric("alignment", ((first - second) ** 2).sum(axis=1), patient, seed)
    yield _uniformity(unit_length(original), patient, seed)


def _uniformity(vectors: Vectors, patient: Ints, seed: int) -> MetricRow:
    kernel = np.exp(4 * (vectors @ vectors.T).astype(np.float64) - 4)  # exp(-2 |x - y|²)
    np.fill_diagonal(kernel, 0)
    member = np.eye(patient.max() + 1)[patient]
    sums = member.T @ kernel @ member  # by pair of patients
    count = member.sum(axis=0)
    pairs = np.outer(count, count) - np.diag(count)
    weights = np.r_[np.ones((1, len(count))), plain_weights(patient, seed)]
    top, bottom = (
        np.einsum("rp,pq,rq->r", weights, m, weights, optimize=True) for m in (sums, pairs)
    )
    values = np.log(np.maximum(top, 1e-300) / np.maximum(bottom, 1))
    return metric_row("uniformity", float(values[0]), values[1:], patient)
