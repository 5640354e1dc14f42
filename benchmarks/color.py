"""Color statistics of tiles: the baseline of the benchmarks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def color_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute color statistics, a baseline that must not solve a task of morphology.

    Args:
        images: (N, H, W, 3) uint8 RGB.

    Returns:
        (N, 9) float32, of intensities scaled to [0, 1]: mean and standard deviation of R, G, B,
        and the covariances RG, RB, GB.
    """
    pixels = images.reshape(len(images), -1, 3).astype(np.float32) / 255
    mean = pixels.mean(axis=1)
    centred = pixels - mean[:, None]
    covariance = np.einsum("npc,npd->ncd", centred, centred) / pixels.shape[1]
    spread = np.sqrt(np.einsum("ncc->nc", covariance))
    return np.concatenate([mean, spread, covariance[:, [0, 0, 1], [1, 2, 2]]], axis=1)
