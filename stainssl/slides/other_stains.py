"""Whether a slide's colors are those of H&E.

Other stains, and color channels in another order, would pass as H&E unnoticed.
"""

from __future__ import annotations

import numpy as np

from stainssl.slides.tissue import EPS_OD, MIN_GLASS, TissueMap, optical_density_log10, sample_step

# In 24 overviews and two slides of H&E at hand blue over green is above 1 in at most 3 % of stained
# pixels (17 % where green ink was missed), and the median of red over green at most 0.61;
# hematoxylin alone has 0.93, DAB (Ruifrok and Johnston 2001) a blue over green of 1.4.
STAINED_OD = 0.1  # mean of the three channels
BROWN_SHARE, BROWN_BLUE_GREEN = 0.05, 1.0
BLUE_RED_GREEN = 0.8
MIN_STAINED_PX = 500

# Green is the most absorbed channel of 78 % or more of the stained px of real overviews, and of
# 43 % at least of those of a patient of BreakHis.
MIN_GREEN_MOST = 0.3
# See `_is_red_blue_swapped`.
SWAPPED_CORRELATION, SWAPPED_SPREAD = 0.3, 0.3
MIN_COMPARED_PX = 2000  # some hundreds of cells
SPREAD_PERCENT = (10, 90)
BLACK = 8  # grey levels of padding, in every channel below this
WHITE_PERCENT = 99.5  # of the px of pictures, whose level is taken for glass


def not_h_and_e(thumbnail: np.ndarray, found: TissueMap) -> str:
    """A sentence where the tissue's colors are not those of H&E; else empty.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        found: its tissue, ink and glass.
    """
    stained = _stained(thumbnail, found.tissue, found)
    if told := _brown(stained):
        return told
    colored = _stained(thumbnail, found.tissue | found.pen, found)  # much is taken for ink there
    return _of_order(colored) or _blue(stained) or _swapped(stained)


def pictures_fault(pixels: np.ndarray) -> str:
    """A sentence where pictures of tissue without glass, taken together, cannot be H&E; else empty.

    Args:
        pixels: (n, 3) uint8 RGB of all pictures, at some 4 µm/px: in single px of a finer scale
            the noise of JPEG outweighs the stains.
    """
    pixels = pixels[pixels.max(axis=1) >= BLACK]
    if len(pixels) < MIN_COMPARED_PX:
        return ""
    white = np.percentile(pixels, WHITE_PERCENT, axis=0).astype(np.float32)
    if white.max() < MIN_GLASS:
        return (
            f"No channel is above {white.max():.0f} (H&E has some 240): too little light, and "
            "stain is estimated against white."
        )
    density = optical_density_log10(pixels[None], white)[0]
    stained = density[density.mean(axis=1) > STAINED_OD]
    if len(stained) < MIN_STAINED_PX:
        return ""
    return _brown(stained) or _of_order(stained) or _swapped(stained)


def _stained(thumbnail: np.ndarray, where: np.ndarray, found: TissueMap) -> np.ndarray:
    """(n, 3) base-10 optical densities of a sample of the stained px in `where` (h, w) bool.

    Empty where there are fewer than `MIN_STAINED_PX`.
    """
    places, none = np.flatnonzero(where), np.zeros((0, 3), np.float32)
    if len(places) < MIN_STAINED_PX:
        return none
    step = sample_step(len(places))
    pixels = thumbnail.reshape(-1, 3)[places[::step]]
    density = optical_density_log10(pixels[None], found.white)[0]
    stained = density[density.mean(axis=1) > STAINED_OD]
    return stained if len(stained) * step >= MIN_STAINED_PX else none


def _of_order(colored: np.ndarray) -> str:
    """A sentence about (n, 3) optical densities that are not most of green; else empty."""
    if not len(colored):
        return ""
    green_most = float((colored.argmax(axis=1) == 1).mean())
    if green_most >= MIN_GREEN_MOST:
        return ""
    return (
        f"Green is the most absorbed color in only {green_most:.0%} of the stained pixels"
        " (in H&E nearly all): is it ink, or are the color channels in another order?"
    )


def _brown(stained: np.ndarray) -> str:
    """A sentence about (n, 3) optical densities of tissue with a brown stain; else empty."""
    is_brown = stained[:, 2] > BROWN_BLUE_GREEN * stained[:, 1]
    share = np.count_nonzero(is_brown) / max(1, len(stained))
    if share < BROWN_SHARE:
        return ""
    return (
        f"{share:.0%} of the tissue is brown or yellow, like DAB: is this immunohistochemistry"
        " instead of H&E?"
    )


def _blue(stained: np.ndarray) -> str:
    """A sentence about (n, 3) optical densities of tissue without eosin; else empty."""
    if not len(stained) or np.median(stained[:, 0]) <= BLUE_RED_GREEN * np.median(stained[:, 1]):
        return ""
    return "The tissue is blue with almost no eosin: is it H&E?"


def _swapped(stained: np.ndarray) -> str:
    """A sentence about (n, 3) optical densities of tissue with red and blue swapped; else empty."""
    if not _is_red_blue_swapped(stained):
        return ""
    return (
        "Where the tissue absorbs more red than blue it absorbs more green, and in H&E less: are"
        " red and blue swapped (BGR)? Export it again."
    )


def _is_red_blue_swapped(stained: np.ndarray) -> bool:
    """Whether (n, 3) optical densities of tissue are those of H&E with red and blue swapped.

    Hematoxylin absorbs red and blue with green, eosin hardly red: from eosin to hematoxylin the
    share of red grows, that of green falls, and that of blue changes little. So red less blue
    goes against green, and red over green varies more than blue over green. Swapped, both signs
    turn. At 8–16 µm/px the correlation is −0.95 to −0.32 on 24 overviews and two slides of real
    H&E and 0.32 to 0.95 after a swap; the logarithm of the ratio of the spreads is 0.36 to 2.06,
    and −2.06 to −0.36. Of 41 groups of real tiles at 4 µm/px (AMi-Br by scanner, CAMELYON17 by
    centre, FAN by protocol, BreakHis by slide) none is taken for swapped, and more than half are
    after a swap.
    """
    if len(stained) < MIN_COMPARED_PX:
        return False
    share = stained / stained.sum(axis=1, keepdims=True)
    red_less_blue, green = share[:, 0] - share[:, 2], share[:, 1]
    if not (red_less_blue.std() and green.std()):
        return False
    correlation = np.corrcoef(red_less_blue, green)[0, 1]
    over_green = stained[:, [0, 2]] / np.maximum(stained[:, 1:2], EPS_OD)
    low, high = np.percentile(over_green, SPREAD_PERCENT, axis=0)
    red, blue = np.maximum(high - low, EPS_OD)
    return bool(correlation > SWAPPED_CORRELATION and np.log(red / blue) < -SWAPPED_SPREAD)
