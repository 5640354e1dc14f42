"""Whether a slide is lit from behind: fluorescence is bright on black and has no stain here."""

from __future__ import annotations

import cv2
import numpy as np

from stainssl.errors import SlideError, Status

DARK, BRIGHT = 64, 160  # grey levels: below the first in every channel, above the second in all
# Frames of black around brightfield slides take up to 71 % of the overviews at hand, whose glass is
# never below 12 %; a slide in fluorescence is 99 % dark and has no glass at all.
MIN_DARK, MAX_BRIGHT = 0.5, 0.02


def channel_range(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest channel of every pixel, (h, w) uint8 each, of (h, w, 3) uint8."""
    red, green, blue = cv2.split(image)  # a tenth of the time of numpy's minimum over an axis of 3
    return cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)


def is_brightfield(least: np.ndarray, most: np.ndarray) -> bool:
    """Whether a thumbnail, by its `channel_range`, is not a dark field without any glass."""
    dark = np.count_nonzero(most < DARK) / most.size
    bright = np.count_nonzero(least >= BRIGHT) / least.size
    return bool(dark < MIN_DARK or bright > MAX_BRIGHT)


def require_brightfield(least: np.ndarray, most: np.ndarray) -> None:
    """Raise for a slide in fluorescence, by its thumbnail's `channel_range`.

    Raises:
        SlideError: `not-brightfield`.
    """
    if not is_brightfield(least, most):
        raise SlideError(
            Status.NOT_BRIGHTFIELD,
            "The slide is dark without bright background, as in fluorescence: H&E is scanned in "
            "brightfield. Exclude it.",
        )
