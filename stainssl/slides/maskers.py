"""Tissue masks by tiatoolbox: its Otsu and morphological maskers.

They tell dark from bright and do not know ink, which `tissue` still finds. tiatoolbox
imports torch (seconds): it is imported only where one of these is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def otsu(thumbnail: np.ndarray, _mpp: float) -> np.ndarray:
    """(h, w) bool, `tiatoolbox.tools.tissuemask.OtsuTissueMasker` of (h, w, 3) uint8 RGB.

    Args:
        thumbnail: the picture.
        _mpp: µm/px; Otsu's threshold does not depend on it.
    """
    from tiatoolbox.tools.tissuemask import OtsuTissueMasker

    return _fitted(OtsuTissueMasker(), thumbnail)


def morphological(thumbnail: np.ndarray, mpp: float) -> np.ndarray:
    """(h, w) bool, `tiatoolbox.tools.tissuemask.MorphologicalMasker` of (h, w, 3) uint8 RGB.

    Args:
        thumbnail: the picture.
        mpp: µm/px, from which the masker takes the size of its kernel.
    """
    from tiatoolbox.tools.tissuemask import MorphologicalMasker

    return _fitted(MorphologicalMasker(mpp=mpp), thumbnail)


def _fitted(masker: Any, thumbnail: np.ndarray) -> np.ndarray:
    if np.ptp(thumbnail) == 0:  # Otsu has nothing to part
        return np.zeros(thumbnail.shape[:2], bool)
    return np.asarray(masker.fit_transform([thumbnail]), bool)[0]
