"""Checks of a slide's illumination: brightfield, exposure and white balance.

Fluorescence and inverted images are bright on dark, and cannot be analysed for stain.
"""

from __future__ import annotations

import cv2
import numpy as np

from stainssl.errors import SlideError, Status
from stainssl.slides.glass import SmoothArea
from stainssl.slides.tissue import MIN_GLASS, TissueMap, sample_step

DARK, BRIGHT = 64, 160  # grey levels: all channels below the first, all from the second on
# In the overviews of brightfield slides examined, black frames cover up to 71 %, and glass at least
# 12 %; a fluorescence slide is 99 % dark and has no glass.
MIN_DARK, MAX_BRIGHT = 0.5, 0.02
# After inversion, the overviews without a frame have a smooth background of 9–27 grey levels, and
# at least 26 % of the image is brighter; a black frame is below `MIN_GROUND` in every channel.
MIN_GROUND, MIN_ABOVE = 4, 0.1

# Glass of real H&E: means of 235–253, channels at most 16 apart on slides and 45 in photographs
# (BreakHis).
MAX_TINT = 48
# Share of tissue with a nearly saturated channel (an overview averages saturated and other px): at
# most 6 % of real and synthetic overviews; with 1.6 times the light 29 to 91 % of three slides,
# with 1.3 times 10 and 36 % of two.
WHITE, MAX_WASHED_OUT, MIN_TISSUE_PX = 250, 0.2, 500


def channel_range(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest channel of every pixel of (h, w, 3) uint8: (h, w) uint8 each."""
    red, green, blue = cv2.split(image)  # a tenth of the time of numpy's minimum over an axis of 3
    return cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)


def is_brightfield(least: np.ndarray, most: np.ndarray, ground: SmoothArea | None = None) -> bool:
    """Whether a thumbnail is of brightfield: neither dark without glass, nor inverted.

    Args:
        least, most: `channel_range` of the thumbnail.
        ground: its `brightest_smooth_area`, if known.
    """
    if ground is not None and ground.is_glass and ground.color.max() >= DARK:
        return True  # under-exposed brightfield
    is_inverted = ground is not None and (
        MIN_GROUND <= ground.color.max() < DARK and ground.brighter > MIN_ABOVE
    )
    dark = np.count_nonzero(most < DARK) / most.size
    bright = np.count_nonzero(least >= BRIGHT) / least.size
    return not is_inverted and bool(dark < MIN_DARK or bright > MAX_BRIGHT)


def light_fault(thumbnail: np.ndarray, found: TissueMap, ground: SmoothArea | None) -> str:
    """Check a slide's exposure and white balance.

    Stain is estimated against white, so that stain vectors and scales of a slide with a fault are
    wrong.

    Args:
        thumbnail: (h, w, 3) uint8 RGB, brightfield.
        found: its tissue map.
        ground: its `brightest_smooth_area`.

    Returns:
        A message if the slide is under-exposed, tinted or over-exposed, otherwise "".
    """
    if ground is not None and ground.is_glass:
        glass = ", ".join(f"{level:.0f}" for level in ground.color)
        if ground.color.max() < MIN_GLASS:
            return (
                f"The glass is dark (RGB {glass}; about 240 in H&E): too little light, and stain"
                " is estimated against white. Scan or export it again."
            )
        if np.ptp(ground.color) > MAX_TINT:
            return (
                f"The glass is tinted (RGB {glass}): the white balance is off, and stain is"
                " estimated against white. Scan or export it again."
            )
    places = np.flatnonzero(found.tissue)
    tissue = thumbnail.reshape(-1, 3)[places[:: sample_step(len(places))]]
    washed_out = float((tissue.max(axis=1) >= WHITE).mean()) if len(tissue) else 0.0
    if len(places) >= MIN_TISSUE_PX and washed_out > MAX_WASHED_OUT:
        return (
            f"{washed_out:.0%} of the tissue is washed out (a channel is white): too much light,"
            " and pale stain is lost. Scan or export it again."
        )
    return ""


def require_brightfield(
    least: np.ndarray, most: np.ndarray, ground: SmoothArea | None = None
) -> None:
    """Refuse a fluorescence or inverted slide; arguments as for `is_brightfield`.

    Raises:
        SlideError: `not-brightfield`.
    """
    if not is_brightfield(least, most, ground):
        raise SlideError(
            Status.NOT_BRIGHTFIELD,
            "The slide is dark without bright background, as in fluorescence or an inverted "
            "image: H&E is scanned in brightfield. Exclude it, or export it again.",
        )
