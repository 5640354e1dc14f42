"""Whether a slide is lit from behind: fluorescence is bright on black and has no stain here."""

from __future__ import annotations

import numpy as np

from stainssl.errors import SlideError, Status

DARK, BRIGHT = 64, 160  # grey levels: below the first in every channel, above the second in all
# Frames of black around brightfield slides take up to 71 % of the overviews at hand, whose glass is
# never below 12 %; a slide in fluorescence is 99 % dark and has no glass at all.
MIN_DARK, MAX_BRIGHT = 0.5, 0.02


def is_brightfield(thumbnail: np.ndarray) -> bool:
    """Whether a thumbnail (h, w, 3) uint8 RGB is not a dark field without any glass."""
    dark = (thumbnail.max(axis=2) < DARK).mean()
    bright = (thumbnail.min(axis=2) >= BRIGHT).mean()
    return bool(dark < MIN_DARK or bright > MAX_BRIGHT)


def require_brightfield(thumbnail: np.ndarray) -> None:
    """Raise for a slide in fluorescence.

    Raises:
        SlideError: `not-brightfield`.
    """
    if not is_brightfield(thumbnail):
        raise SlideError(
            Status.NOT_BRIGHTFIELD,
            "The slide is dark without bright background, as in fluorescence: H&E is scanned in "
            "brightfield. Exclude it.",
        )
