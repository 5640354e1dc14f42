"""Checks of whether a slide's colors are those of H&E.

They detect other stains, and color channels in another order, which would go unnoticed otherwise.
"""

from __future__ import annotations

import numpy as np

from stainssl.slides.tissue import EPS_OD, MIN_GLASS, TissueMap, optical_density_log10, sample_step

# Ratios of optical densities. In 24 overviews and two slides of H&E, blue over green is above 1 in
# at most 3 % of stained px (17 % where green ink was missed), and the median of red over green is
# at most 0.61. Hematoxylin alone has a red over green of 0.93, DAB (Ruifrok and Johnston 2001) a
# blue over green of 1.4.
STAINED_OD = 0.1  # mean of the three channels
BROWN_SHARE, BROWN_BLUE_GREEN = 0.05, 1.0
BLUE_RED_GREEN = 0.8
MIN_STAINED_PX = 500

# Green is the most absorbed channel in at least 78 % of the stained px of real overviews, and in at
# least 43 % of those of a BreakHis patient.
MIN_GREEN_MOST = 0.3
# See `_is_red_blue_swapped`.
SWAPPED_CORRELATION, SWAPPED_SPREAD = 0.3, 0.3
MIN_COMPARED_PX = 2000  # some hundreds of cells
SPREAD_PERCENT = (10, 90)
BLACK = 8  # padding is below this grey level in every channel
WHITE_PERCENT = 99.5  # percentile of the grey levels that is taken as glass


def not_h_and_e(thumbnail: np.ndarray, found: TissueMap) -> str:
    """Check whether the colors of a slide's tissue are those of H&E.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        found: its tissue map.

    Returns:
        A message if they are not, otherwise "".
    """
    stained = _stained(thumbnail, found.tissue, found)
    if told := _brown(stained):
        return told
    # With ink, since much tissue is taken for ink if the channels are in another order.
    colored = _stained(thumbnail, found.tissue | found.ink, found)
    return _of_order(colored) or _blue(stained) or _swapped(stained)


def pictures_fault(pixels: np.ndarray) -> str:
    """Check whether the pooled pixels of patches, which may have no glass, can be H&E.

    Args:
        pixels: (n, 3) uint8 RGB of all patches, at about 4 µm/px: at a finer scale, JPEG noise
            in single px outweighs the stains.

    Returns:
        A message if they cannot, otherwise "".
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
    """Sample the stained px of a mask: (n, 3) base-10 optical densities.

    Empty if there are fewer than `MIN_STAINED_PX` stained px.
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
    """Message if green is rarely the most absorbed channel of (n, 3) densities, otherwise ""."""
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
    """Message if (n, 3) optical densities of tissue are brown, otherwise ""."""
    is_brown = stained[:, 2] > BROWN_BLUE_GREEN * stained[:, 1]
    share = np.count_nonzero(is_brown) / max(1, len(stained))
    if share < BROWN_SHARE:
        return ""
    return (
        f"{share:.0%} of the tissue is brown or yellow, like DAB: is this immunohistochemistry"
        " instead of H&E?"
    )


def _blue(stained: np.ndarray) -> str:
    """Message if (n, 3) optical densities of tissue have almost no eosin, otherwise ""."""
    if not len(stained) or np.median(stained[:, 0]) <= BLUE_RED_GREEN * np.median(stained[:, 1]):
        return ""
    return "The tissue is blue with almost no eosin: is it H&E?"


def _swapped(stained: np.ndarray) -> str:
    """Message if red and blue are swapped in (n, 3) optical densities of tissue, otherwise ""."""
    if not _is_red_blue_swapped(stained):
        return ""
    return (
        "Where the tissue absorbs more red than blue it absorbs more green, and in H&E less: are"
        " red and blue swapped (BGR)? Export it again."
    )


def _is_red_blue_swapped(stained: np.ndarray) -> bool:
    """Whether (n, 3) optical densities of tissue are those of H&E with red and blue swapped.

    Hematoxylin absorbs red, green and blue, eosin hardly any red: from eosin to hematoxylin the
    share of red increases, that of green decreases, and that of blue changes little. The
    difference of the shares of red and blue is therefore negatively correlated with the share of
    green, and red over green varies more than blue over green. After a swap, both signs are
    reversed. At 8–16 µm/px, the correlation is −0.95 to −0.32 on 24 overviews and two slides of
    real H&E and 0.32 to 0.95 after a swap; the logarithm of the ratio of the spreads is 0.36 to
    2.06, and −2.06 to −0.36. Of 41 groups of real tiles at 4 µm/px (AMi-Br by scanner, CAMELYON17
    by centre, FAN by protocol, BreakHis by slide), none is classified as swapped, and more than
    half are after a swap.
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
