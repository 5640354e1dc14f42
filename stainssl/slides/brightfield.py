"""Whether a slide is lit from behind, and by how much light of which color.

Fluorescence and inverted pictures are bright on black, and have no stain here.
"""

from __future__ import annotations

import cv2
import numpy as np

from stainssl.errors import SlideError, Status
from stainssl.slides.glass import SmoothArea
from stainssl.slides.tissue import MIN_GLASS, TissueMap, sample_step

DARK, BRIGHT = 64, 160  # grey levels: below the first in every channel, above the second in all
# Frames of black around brightfield slides take up to 71 % of the overviews at hand, whose glass is
# never below 12 %; a slide in fluorescence is 99 % dark and has no glass at all.
MIN_DARK, MAX_BRIGHT = 0.5, 0.02
# Inverted, the overviews without a frame have a smooth ground of 9–27 grey levels, and 26 % of
# the picture or more is brighter; a frame of black has less than `MIN_GROUND` in every channel.
MIN_GROUND, MIN_ABOVE = 4, 0.1

# Glass of real H&E at hand: means of 235–253, the channels at most 16 apart on slides and 45 on
# photographs (BreakHis); darker than 180 the mask took it for no glass before.
MAX_TINT = 48
# Share of tissue with a channel near the end of the scale (an overview averages px that are there
# and px that are not): at most 6 % of real and synthetic overviews; with 1.6 times the light 29 to
# 91 % of three slides, with 1.3 times 10 and 36 % of two.
WHITE, MAX_WASHED_OUT, MIN_TISSUE_PX = 250, 0.2, 500


def channel_range(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest channel of every pixel, (h, w) uint8 each, of (h, w, 3) uint8."""
    red, green, blue = cv2.split(image)  # a tenth of the time of numpy's minimum over an axis of 3
    return cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)


def is_brightfield(least: np.ndarray, most: np.ndarray, ground: SmoothArea | None = None) -> bool:
    """Whether a thumbnail is no dark field: without any glass, or inverted.

    Args:
        least, most: its `channel_range`.
        ground: its `brightest_smooth_area`, if it was looked for.
    """
    if ground is not None and ground.is_glass and ground.color.max() >= DARK:
        return True  # with little light, but from behind
    is_inverted = ground is not None and (
        MIN_GROUND <= ground.color.max() < DARK and ground.brighter > MIN_ABOVE
    )
    dark = np.count_nonzero(most < DARK) / most.size
    bright = np.count_nonzero(least >= BRIGHT) / least.size
    return not is_inverted and bool(dark < MIN_DARK or bright > MAX_BRIGHT)


def light_fault(thumbnail: np.ndarray, found: TissueMap, ground: SmoothArea | None) -> str:
    """A sentence where a slide has too little light, too much, or tinted light; else empty.

    Stain is estimated against white: of such a slide the vectors and strengths are wrong.

    Args:
        thumbnail: (h, w, 3) uint8 RGB, of brightfield.
        found: its tissue.
        ground: its `brightest_smooth_area`.
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
    """Raise for a slide in fluorescence or an inverted one; arguments as of `is_brightfield`.

    Raises:
        SlideError: `not-brightfield`.
    """
    if not is_brightfield(least, most, ground):
        raise SlideError(
            Status.NOT_BRIGHTFIELD,
            "The slide is dark without bright background, as in fluorescence or an inverted "
            "image: H&E is scanned in brightfield. Exclude it, or export it again.",
        )
