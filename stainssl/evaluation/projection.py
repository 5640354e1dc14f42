"""Vectors in two dimensions, to look at: UMAP of a sample of tiles."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from stainssl.evaluation.probe import Vectors

NEIGHBOURS = 15  # UMAP's own default
MAX_TILES = 800  # more are a cloud, and minutes


def project(vectors: Vectors, seed: int) -> NDArray[np.float32]:
    """UMAP by cosine distance (McInnes, Healy and Melville, 2018).

    Distances on the plane say who is whose neighbour, not how far apart groups are.

    Args:
        vectors: (N, D) finite.
        seed: the same seed gives the same picture on the same machine.

    Returns:
        (N, 2); zeros where there are too few points to lay out.
    """
    if len(vectors) <= NEIGHBOURS + 2:
        return np.zeros((len(vectors), 2), np.float32)
    from umap import UMAP  # eight seconds of compiling, for nothing but this

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed costs parallelism; that graphs have parts
        made = UMAP(n_neighbors=NEIGHBOURS, metric="cosine", random_state=seed)
        return np.asarray(made.fit_transform(vectors.astype(np.float32)), np.float32)
