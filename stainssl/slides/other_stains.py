"""Whether a slide's colors are those of H&E: other stains would pass as H&E unnoticed."""

from __future__ import annotations

import numpy as np

from stainssl.slides.tissue import TissueMap, optical_density_log10, sample_step

# In 24 overviews and two slides of H&E at hand blue over green is above 1 in at most 3 % of stained
# pixels (17 % where green ink was missed), and the median of red over green at most 0.61;
# hematoxylin alone has 0.93, DAB (Ruifrok and Johnston 2001) a blue over green of 1.4.
STAINED_OD = 0.1  # mean of the three channels
BROWN_SHARE, BROWN_BLUE_GREEN = 0.05, 1.0
BLUE_RED_GREEN = 0.8
MIN_STAINED_PX = 500


def not_h_and_e(thumbnail: np.ndarray, found: TissueMap) -> str:
    """A sentence where the tissue's colors are not those of H&E; else empty.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        found: its tissue and glass.
    """
    places = np.flatnonzero(found.tissue)
    if len(places) < MIN_STAINED_PX:
        return ""
    step = sample_step(len(places))
    pixels = thumbnail.reshape(-1, 3)[places[::step]]
    density = optical_density_log10(pixels[None], found.white)[0]
    stained = density[density.mean(axis=1) > STAINED_OD]
    if len(stained) * step < MIN_STAINED_PX:
        return ""
    red, green, blue = stained.T
    brown = float((blue > BROWN_BLUE_GREEN * green).mean())
    if brown >= BROWN_SHARE:
        return (
            f"{brown:.0%} of the tissue is brown or yellow, like DAB: is this immunohistochemistry"
            " instead of H&E?"
        )
    if np.median(red) > BLUE_RED_GREEN * np.median(green):
        return "The tissue is blue with almost no eosin: is it H&E?"
    return ""
