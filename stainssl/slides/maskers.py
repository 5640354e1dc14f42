"""Tissue masks by tiatoolbox's Otsu and morphological maskers.

They separate dark from bright and do not detect ink, which `tissue.segment_tissue` removes.
tiatoolbox imports torch (some seconds), and is therefore imported only when needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def otsu(thumbnail: np.ndarray, _mpp: float) -> np.ndarray:
    """Tissue mask (h, w) bool by `tiatoolbox.tools.tissuemask.OtsuTissueMasker`.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        _mpp: µm/px; not used, as Otsu's threshold does not depend on it.
    """
    from tiatoolbox.tools.tissuemask import OtsuTissueMasker

    return _fitted(OtsuTissueMasker(), thumbnail)


def morphological(thumbnail: np.ndarray, mpp: float) -> np.ndarray:
    """Tissue mask (h, w) bool by `tiatoolbox.tools.tissuemask.MorphologicalMasker`.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        mpp: µm/px, which determines the kernel size of the masker.
    """
    from tiatoolbox.tools.tissuemask import MorphologicalMasker

    return _fitted(MorphologicalMasker(mpp=mpp), thumbnail)


def _fitted(masker: Any, thumbnail: np.ndarray) -> np.ndarray:
    if np.ptp(thumbnail) == 0:  # Otsu's threshold is undefined
        return np.zeros(thumbnail.shape[:2], bool)
    return np.asarray(masker.fit_transform([thumbnail]), bool)[0]
