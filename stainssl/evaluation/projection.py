"""Two-dimensional projection of embeddings by UMAP."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from stainssl.evaluation.probe import Vectors

NEIGHBOURS = 15  # UMAP's own default
MAX_TILES = 800  # more overlap in the figure, and take minutes


def project(vectors: Vectors, seed: int) -> NDArray[np.float32]:
    """UMAP by cosine distance (McInnes, Healy and Melville, 2018).

    The projection shows neighborhoods, but not how far apart groups are.

    Args:
        vectors: (N, D) finite.
        seed: random seed; results are reproducible on the same machine.

    Returns:
        (N, 2) float32; zeros if there are too few points.
    """
    if len(vectors) <= NEIGHBOURS + 2:
        return np.zeros((len(vectors), 2), np.float32)
    from umap import UMAP  # compiles for eight seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no parallelism with a seed; graph not connected
        made = UMAP(n_neighbors=NEIGHBOURS, metric="cosine", random_state=seed)
        return np.asarray(made.fit_transform(vectors.astype(np.float32)), np.float32)
