"""Where tissue is on a thumbnail: not glass, ink, frame, shadow or dust.

Color is judged in optical density against the slide's own glass, so that a grey or tinted white
is not tissue. Saturation here is the spread of a pixel's optical densities (largest channel less
smallest): stain has it however pale, and shadow, glass edges and black frames have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import cv2
import numpy as np

from stainssl.runtime.parallel import in_order
from stainssl.slides import maskers
from stainssl.slides.bits import Bits, ellipse, square
from stainssl.slides.glass import brightest_smooth_area

SMOOTH_UM = 4.0  # standard deviation of the blur that takes out JPEG and sensor noise
# Otsu's threshold is kept inside these (base-10 optical density): below the floor is the noise of
# glass; above the ceiling a dark tumour would push the threshold past pale stroma and fat.
SATURATION_FLOOR, SATURATION_CEILING = 0.012, 0.03
DENSITY_FLOOR, DENSITY_CEILING = 0.02, 0.06
NOISE_DEVIATIONS = 4.0  # of the glass's own saturation, above its median, before it is stain
WALL_SATURATION = 0.006  # of the walls of fat cells, thinner than a px; noise raises it
HALO_PX = 8  # a block of JPEG: so far the color of dense tissue bleeds onto glass
CLOSE_UM = 16.0  # radius that joins tissue
WALLS_CLOSE_UM = 56.0  # radius that joins the walls of fat cells, which are some 80–110 µm wide
BULK_UM = 24.0  # radius of what is no wall
INK_GROW_UM = 24.0  # the soft edge of a stroke
INK_REACH_UM = 2000.0  # how far a faint stroke is followed from where its color is plain
INK_MPP = 16.0  # µm/px at which ink is told: strokes are wide
FRAME_DENSITY = 1.2  # what is black to this optical density and touches the border is no slide
SAMPLE = 100_000  # pixels that thresholds and the glass's color are estimated from
MIN_GLASS_SAMPLE = 1000  # pixels of glass in the sample, below which its noise is not estimated
MAD_TO_DEVIATION = 1.4826  # of a normal distribution: standard deviation over median deviation
TOP_PERCENT = 99.5  # of values, at which Otsu's histogram ends: a speck must not stretch it
MIN_BLUR_PX = 0.3  # standard deviation below which a blur changes nothing
STRIP_PX = 16  # rows that are tested at once
STRIPS = 8  # that a thread tests before it takes the next
EPS_OD = 1e-3  # optical density below which no ratio is taken

# Glass, in grey levels.
MIN_GLASS = 180  # nothing darker is taken for glass
GLASS_SPREAD = 40  # the channels of glass are no further apart
MIN_PADDING = 254  # pure white, which scanners put where nothing was scanned
PADDING_SHARE = 0.1  # of the bright pixels that must be no padding for it to be left out
GLASS_SHARE = 0.005  # of the picture that must be glass for its color to be taken
MODE_WIDTH, MODE_REACH = 5, 3  # the commonest grey is counted over these; so far from it is glass
DEFAULT_WHITE, DEFAULT_REACH = 245.0, 15.0  # where no glass is in the picture

# Ink, in optical densities of a channel (`_OD`), of the mean of the three (`_MEAN`, `_TIMES`: in
# medians of the slide's stained px), and in ratios of two channels' densities (`RED_GREEN`: red
# over green). At 16 µm/px real H&E has red over green 0.06–0.8, blue over green 0.35–0.85, and no
# channel above 1.1.
MIN_INK_UM2 = 10_000.0  # a smaller spot is pigment or a fold
BLUE_OD, BLUE_RED_GREEN, BLUE_MARGIN_OD = 0.12, 1.15, 0.02  # blue and green ink: red most
OVER_TISSUE_OD, OVER_TISSUE_TIMES = 0.2, 1.2  # the same over tissue: red
CLEAR_OD, CLEAR_RED_GREEN, CLEAR_TIMES = 0.35, 0.7, 1.3  # blue ink over tissue: red
CLEAR_OF_USUAL, CLEAR_BLUE_RED = 0.6, 0.7  # its blue over red: in the slide's median; at most
RED_OD, RED_RED_GREEN, RED_BLUE_GREEN = 0.45, 0.16, 0.75  # red ink: green; blood has more red
BLACK_OD, BLACK_EVEN = 0.6, 0.72  # black ink: least channel; in the most absorbed one
BLACK_LESS_EVEN, BLACK_TIMES = 0.5, 2.5  # the same over tissue
OFTEN_PERCENT = 95  # of the slide's red over green, from which its own bluest is told
BLUEST_MORE, MIN_BLUEST, MAX_BLUEST = 0.1, 0.9, 1.05  # red over green
BEYOND_MORE, MIN_BEYOND, BEYOND_UNKNOWN = 0.2, 0.97, 1.15
# Faint ink: the same colors, followed from where they are plain.
FAINT_TIMES = 1.6
FAINT_BLUE_OD, FAINT_BLUE_RED_GREEN = 0.06, 1.05
FAINT_RED_OD, FAINT_RED_RED_GREEN, FAINT_RED_BLUE_GREEN = 0.25, 0.3, 0.62
FAINT_DARK_OD, FAINT_DARK_RED_GREEN = 0.25, 0.8
FAINT_OVER_TISSUE_TIMES = 1.15
FAINT_BLACK_OD, FAINT_BLACK_EVEN = 0.3, 0.55
# Strange ink: colors that stain may have, and that are ink where a stroke of them lies on glass.
YELLOW_OD, YELLOW_BLUE_GREEN = 0.2, 1.25  # orange, yellow, brown: blue
VIOLET_OD, VIOLET_RED_GREEN = 0.3, 0.25  # green; eosin has less red
VIOLET_BLUE_GREEN, VIOLET_OF_USUAL = 0.35, 0.72  # at most; in the slide's median
PINK_OD, PINK_RED_GREEN = 0.7, 0.04  # green; eosin has a red over green of 0.07 and more
OPAQUE_OD, OPAQUE_TIMES = 1.6, 4.0  # the most absorbed channel, above any tissue's
FAINT_STRANGE_OD, FAINT_YELLOW_BLUE_GREEN = 0.08, 1.0
MIXED_MEAN, MIXED_RED_GREEN = 0.1, 0.75  # px that count for it; grey and green have more red
MIXED_BLUE_GREEN, MIXED_SHARE = 0.9, 0.3  # between H&E and yellow; of yellow px: yellow is stain
RIM_PX = (2, 4)  # from a piece at `INK_MPP`: where its surroundings are looked at
GLASS_RIM, GLASS_OD = 0.5, 0.06  # share of the rim that is glass; most absorbed channel of glass


@dataclass(frozen=True)
class TissueMap:
    """What a thumbnail shows, (h, w) bool each: `tissue` and `pen` never overlap."""

    tissue: np.ndarray
    pen: np.ndarray
    mpp: float  # µm/px
    white: np.ndarray  # (3,) float32, the grey levels of glass


def sample_step(pixels: int) -> int:
    """Every how many of some pixels are looked at, so that `SAMPLE` are, or all of fewer."""
    return max(1, pixels // SAMPLE)


def glass_white(image: np.ndarray) -> np.ndarray:
    """The color of empty glass: the commonest bright grey, padding of pure white left out.

    Where nothing bright is grey, it is the color of a large smooth area than which nothing is
    brighter: glass of an under-exposed or tinted slide.

    Args:
        image: (h, w, 3) uint8 RGB.

    Returns:
        (3,) float32, grey levels: 180–255, or less on an under-exposed slide.
    """
    pixels = image.reshape(-1, 3)
    pixels = pixels[:: sample_step(len(pixels))]
    red, green, blue = pixels.T.copy()
    low, high = (f(f(red, green), blue) for f in (np.minimum, np.maximum))
    bright = (low >= MIN_GLASS) & (high - low <= GLASS_SPREAD)
    inner = bright & (low < MIN_PADDING)
    candidates = pixels[inner if inner.sum() > PADDING_SHARE * bright.sum() else bright]
    if len(candidates) < GLASS_SHARE * len(pixels):
        area = brightest_smooth_area(image)
        if area is not None and area.is_glass:  # dark or tinted
            return area.color
        top = np.percentile(pixels, 99, axis=0)
        return np.clip(top, DEFAULT_WHITE - DEFAULT_REACH, 255).astype(np.float32)
    grey = candidates.mean(axis=1)
    counts = np.bincount(grey.astype(int), minlength=256).astype(float)
    mode = int(np.argmax(np.convolve(counts, np.ones(MODE_WIDTH), "same")))
    return np.median(candidates[np.abs(grey - mode) <= MODE_REACH], axis=0).astype(np.float32)


def optical_density_log10(image: np.ndarray, white: np.ndarray | float = 255.0) -> np.ndarray:
    """−log10((I + 1) / (white + 1)), not below 0.

    Args:
        image: (h, w, 3) uint8 RGB.
        white: grey level(s) of no absorption.

    Returns:
        (h, w, 3) float32, 0–2.41.
    """
    image = np.ascontiguousarray(image)
    if not isinstance(white, np.ndarray):  # one table for all channels: half the time
        return cv2.LUT(image, _one_table(white))
    return cv2.LUT(image, _density_of_levels(white).T[None].copy())


@cache
def _one_table(white: float) -> np.ndarray:
    return _density_of_levels(white)[0]


def _density_of_levels(white: np.ndarray | float) -> np.ndarray:
    """(3, 256) float32: the optical density of every grey level of each channel."""
    white = np.broadcast_to(np.asarray(white, np.float32), (3,))[:, None]
    levels = np.arange(1, 257, dtype=np.float32)
    return np.maximum(-np.log10(levels / (white + 1)), 0).astype(np.float32)


@dataclass(frozen=True)
class _Density:
    """Optical densities of some pixels, float32 arrays of one shape."""

    red: np.ndarray
    green: np.ndarray
    blue: np.ndarray
    least: np.ndarray  # of the channels
    most: np.ndarray

    @cached_property
    def mean(self) -> np.ndarray:
        """Of the channels."""
        return (self.red + self.green + self.blue) / 3

    @cached_property
    def saturation(self) -> np.ndarray:
        """The spread of the channels."""
        return self.most - self.least

    def at(self, chosen: Any) -> _Density:
        """Those of some of the pixels."""
        channels = (self.red, self.green, self.blue, self.least, self.most)
        return _Density(*(values[chosen] for values in channels))


Test = Callable[[_Density], np.ndarray]  # of single pixels


@dataclass(frozen=True)
class _Picture:
    """A thumbnail whose optical densities are asked for piece by piece.

    Whole planes of floats would take ten times its memory.
    """

    levels: np.ndarray  # (h, w, 3) uint8
    white: np.ndarray
    mpp: float
    threads: int = 1  # that look at it

    @cached_property
    def _tables(self) -> np.ndarray:
        return _density_of_levels(self.white)

    def _density(self, pixels: np.ndarray) -> _Density:
        # Channel by channel: OpenCV's look-up in three tables at once takes twice as long.
        channels = zip(cv2.split(pixels), self._tables, strict=True)
        red, green, blue = (cv2.LUT(levels, table) for levels, table in channels)
        least, most = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
        return _Density(red, green, blue, least, most)

    @cached_property
    def sample(self) -> _Density:
        """(n,) densities of pixels that lie evenly over the picture."""
        pixels = self.levels.reshape(-1, 1, 3)
        pixels = np.ascontiguousarray(pixels[:: sample_step(len(pixels))])
        return self._density(pixels).at(np.s_[:, 0])

    def where(self, *tests: Test) -> list[np.ndarray]:
        """(h, w) bool of each test of single pixels, strip by strip: each fits in the cache."""
        found = [np.empty(self.levels.shape[:2], bool) for _ in tests]
        height, several = len(self.levels), STRIPS * STRIP_PX

        def work(start: int) -> None:
            for top in range(start, min(start + several, height), STRIP_PX):
                rows = slice(top, top + STRIP_PX)
                density = self._density(self.levels[rows])
                for mask, test in zip(found, tests, strict=True):
                    mask[rows] = test(density)

        for _ in in_order(work, range(0, height, several), self.threads):
            pass
        return found

    def coarse(self, mpp: float) -> _Picture:
        """The picture at about `mpp` µm/px, or as it is where it is no finer."""
        height, width = (max(1, round(n * self.mpp / mpp)) for n in self.levels.shape[:2])
        if height >= len(self.levels):
            return self
        levels = cv2.resize(self.levels, (width, height), interpolation=cv2.INTER_AREA)
        return replace(self, levels=levels, mpp=mpp)


def _radius_px(radius_um: float, mpp: float) -> int:
    return max(1, round(radius_um / mpp))


def _disk(radius_um: float, mpp: float) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _radius_px(radius_um, mpp) + 1,) * 2)


def _pieces(mask: np.ndarray) -> np.ndarray:
    """(h, w) int32: the number of the connected piece of `mask` that a pixel is of, 0 for none."""
    found = cv2.connectedComponents(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)
    return np.asarray(found[1], np.int32)


def drop_small(mask: np.ndarray, least_px: float) -> np.ndarray:
    """`mask` (h, w) bool without connected pieces of fewer than `least_px` pixels."""
    kept = mask.copy()
    kept.reshape(-1)[_in_small(mask, least_px)] = False
    return kept


def _in_small(mask: np.ndarray, least_px: float) -> np.ndarray:
    """(n,) int, places in `mask` (h, w) bool of the pixels of pieces of fewer than `least_px`.

    Pieces are counted by the runs of their rows, which are far fewer than their pixels.
    """
    if not mask.any():
        return np.empty(0, np.intp)
    begins = np.ones_like(mask)
    np.not_equal(mask[:, 1:], mask[:, :-1], out=begins[:, 1:])
    start = np.flatnonzero(begins)
    length, label = np.diff(start, append=mask.size), _pieces(mask).ravel()[start]
    is_small = np.bincount(label, length) < least_px
    is_small[0] = False
    start, length = (values[is_small[label]] for values in (start, length))
    return np.repeat(start - (np.cumsum(length) - length), length) + np.arange(length.sum())


def _touching(mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The connected pieces of `mask` that hold a pixel of `seeds`; (h, w) bool each."""
    labels = _pieces(mask)
    kept = np.zeros(labels.max() + 1, bool)
    kept[labels[seeds]] = True
    kept[0] = False
    return np.take(kept, labels)


def _otsu(values: np.ndarray, floor: float, ceiling: float) -> float:
    """Otsu's threshold of `values` (n,), kept between `floor` and `ceiling`."""
    if values.size == 0:
        return floor
    most = max(float(np.percentile(values, TOP_PERCENT)), 1e-6)
    scaled = np.clip(values / most * 255, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(scaled.reshape(-1, 1), 0, 255, cv2.THRESH_OTSU)
    return float(np.clip(threshold / 255 * most, floor, ceiling))


def _glass_noise(sample: _Density) -> float:
    """What the glass's own saturation reaches, 0 where there is too little glass to tell."""
    glass = sample.saturation[sample.mean < DENSITY_FLOOR]
    if len(glass) < MIN_GLASS_SAMPLE:
        return 0.0
    middle = float(np.median(glass))
    deviation = MAD_TO_DEVIATION * float(np.median(np.abs(glass - middle)))
    return middle + NOISE_DEVIATIONS * deviation


def _frame(picture: _Picture) -> np.ndarray:
    """(h, w) bool: black that touches the border, with its soft edge.

    Viewers and scanners put it around a slide.
    """
    # Black in every channel, by the level that is as dense.
    darkest = (picture.white + 1) * 10**-FRAME_DENSITY - 1
    black = cv2.inRange(picture.levels, (0, 0, 0), tuple(np.floor(darkest).tolist())).astype(bool)
    if not black.any():
        return black
    border = np.zeros_like(black)
    border[[0, -1]] = border[:, [0, -1]] = True
    frame = _touching(black, border & black).astype(np.uint8)
    return cv2.dilate(frame, _disk(2 * INK_GROW_UM, picture.mpp)).astype(bool)


@dataclass(frozen=True)
class _Stain:
    """What a slide's own stain looks like, so that ink can be told from it.

    `density` is its median optical density. `bluest` is the red over green that hardly any of it
    reaches, `beyond` one that none does; `clearest` is a blue over red that no area of it falls
    below, `purest` a blue over green likewise. `yellow` says that it has brown or yellow of its
    own: DAB, saffron, blood.
    """

    density: float
    bluest: float
    beyond: float
    clearest: float
    purest: float
    yellow: bool

    @classmethod
    def of(cls, sample: _Density) -> _Stain:
        """By a sample of the picture; ink that covers less than a twentieth changes little."""
        stained = sample.at(sample.mean > DENSITY_CEILING)
        if not stained.mean.size:
            return cls(0.0, MAX_BLUEST, BEYOND_UNKNOWN, 0.0, 0.0, False)
        often = float(np.percentile(stained.red / np.maximum(stained.green, EPS_OD), OFTEN_PERCENT))
        blue_red = float(np.median(stained.blue / np.maximum(stained.red, EPS_OD)))
        blue_green = float(np.median(stained.blue / np.maximum(stained.green, EPS_OD)))
        return cls(
            density=float(np.median(stained.mean)),
            bluest=min(max(often + BLUEST_MORE, MIN_BLUEST), MAX_BLUEST),
            beyond=max(often + BEYOND_MORE, MIN_BEYOND),
            clearest=min(CLEAR_OF_USUAL * blue_red, CLEAR_BLUE_RED),
            purest=min(VIOLET_OF_USUAL * blue_green, VIOLET_BLUE_GREEN),
            yellow=_own_yellow(stained),
        )


def _own_yellow(stained: _Density) -> bool:
    """Whether the stain itself has colors that absorb blue the most.

    DAB and saffron lie on tissue that is stained otherwise too, so that there is every color in
    between; a stroke beside the tissue is of one color.
    """
    grey = stained.red > MIXED_RED_GREEN * stained.green
    seen = stained.at((stained.mean > MIXED_MEAN) & ~grey)
    yellow = (seen.blue > YELLOW_BLUE_GREEN * seen.green).sum()
    mixed = (seen.blue > MIXED_BLUE_GREEN * seen.green).sum() - yellow
    return bool(mixed > MIXED_SHARE * yellow)


def _plain_ink(od: _Density, stain: _Stain) -> np.ndarray:
    """(h, w) bool, pixels of a color that no H&E stain has.

    Stain absorbs green the most. Blue and green ink absorb red the most; red ink absorbs blue
    nearly as much as green and no red; black ink absorbs all alike, and far more than the tissue
    under it.
    """
    blue = (od.red > BLUE_OD) & (od.red > BLUE_RED_GREEN * od.green + BLUE_MARGIN_OD)
    beyond = (od.red > OVER_TISSUE_OD) & (od.red > stain.beyond * od.green)
    over_tissue = beyond & (od.mean > OVER_TISSUE_TIMES * stain.density)
    # Blue ink over tissue has the colors of pure hematoxylin, which fills no area as wide as a
    # stroke: at this scale there is eosin everywhere, which takes blue and hardly red.
    clear = (od.blue < stain.clearest * od.red) & (od.mean > CLEAR_TIMES * stain.density)
    blue_over_tissue = clear & (od.red > CLEAR_RED_GREEN * od.green) & (od.red > CLEAR_OD)
    no_red = (od.green > RED_OD) & (od.red < RED_RED_GREEN * od.green)
    red = no_red & (od.blue > RED_BLUE_GREEN * od.green)
    dense = od.mean > BLACK_TIMES * stain.density
    even = (od.least > BLACK_EVEN * od.most) | ((od.least > BLACK_LESS_EVEN * od.most) & dense)
    return blue | over_tissue | blue_over_tissue | red | ((od.least > BLACK_OD) & even)


def _faint_ink(od: _Density, stain: _Stain) -> np.ndarray:
    """(h, w) bool, pixels that stain could have too, and that are ink where they join plain ink."""
    dense = od.mean > FAINT_TIMES * stain.density
    blue = (od.red > FAINT_BLUE_OD) & (od.red > FAINT_BLUE_RED_GREEN * od.green)
    no_red = (od.green > FAINT_RED_OD) & (od.red < FAINT_RED_RED_GREEN * od.green)
    red = no_red & (od.blue > FAINT_RED_BLUE_GREEN * od.green)
    dark = (od.least > FAINT_DARK_OD) & (od.red > FAINT_DARK_RED_GREEN * od.green)
    bluest = od.red > stain.bluest * od.green
    over_tissue = bluest & (od.mean > FAINT_OVER_TISSUE_TIMES * stain.density)
    black = (od.least > FAINT_BLACK_OD) & (od.least > FAINT_BLACK_EVEN * od.most)
    return blue | red | over_tissue | ((dark | black) & dense)


def _strange(od: _Density, stain: _Stain) -> np.ndarray:
    """(h, w) bool, pixels of a color that this slide's stain does not have, though others may.

    Orange, yellow and brown ink absorb blue the most, as DAB does; violet ink absorbs less blue
    than any mix of hematoxylin and eosin, neon pink no red at all.
    """
    yellow = (od.blue > YELLOW_BLUE_GREEN * od.green) & (od.blue > YELLOW_OD) & (not stain.yellow)
    violet = (od.blue < stain.purest * od.green) & (od.red > VIOLET_RED_GREEN * od.green)
    pink = (od.green > PINK_OD) & (od.red < PINK_RED_GREEN * od.green)
    opaque = od.most > max(OPAQUE_OD, OPAQUE_TIMES * stain.density)
    return yellow | (violet & (od.green > VIOLET_OD)) | pink | opaque


def _strange_faint(od: _Density, stain: _Stain) -> np.ndarray:
    """(h, w) bool, the same colors where they are pale or lie on tissue."""
    yellow = (od.blue > FAINT_YELLOW_BLUE_GREEN * od.green) & (od.blue > FAINT_STRANGE_OD)
    violet = (od.blue < stain.purest * od.green) & (od.green > FAINT_STRANGE_OD)
    return (yellow & (not stain.yellow)) | violet


def _on_glass(mask: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """The connected pieces of `mask` that have glass along most of their outline.

    Ink beside tissue has it. Pigment, blood, and tissue that took up one stain alone lie among
    tissue of other colors.
    """
    labels = _pieces(mask)
    kept = np.zeros(labels.max() + 1, bool)
    inner, outer = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * n + 1,) * 2) for n in RIM_PX)
    margin = RIM_PX[1]
    padded, bright = np.pad(labels, margin), np.pad(glass, margin)
    within = np.pad(np.ones_like(glass), margin)
    boxes = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2]
    for label, (x, y, width, height, _) in enumerate(boxes[1:], 1):
        box = np.s_[y : y + height + 2 * margin, x : x + width + 2 * margin]
        piece = (padded[box] == label).astype(np.uint8)
        rim = (cv2.dilate(piece, outer) > cv2.dilate(piece, inner)) & within[box]
        kept[label] = not rim.any() or bright[box][rim].mean() >= GLASS_RIM
    kept[0] = False
    return np.take(kept, labels)


def _strokes(picture: _Picture, plain: np.ndarray, is_faint: Test) -> np.ndarray:
    """(h, w) bool: plain ink, and faint ink that is joined to it within `INK_REACH_UM`."""
    found = np.zeros_like(plain)
    if not plain.any():
        return found
    box = _around(plain, math.ceil(INK_REACH_UM / picture.mpp) + 2)
    plain, picture = plain[box], replace(picture, levels=picture.levels[box])
    away_px = cv2.distanceTransform((~plain).astype(np.uint8), cv2.DIST_L2, 3)
    [faint] = picture.where(is_faint)
    faint &= away_px * picture.mpp < INK_REACH_UM
    opened = cv2.morphologyEx(faint.view(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    found[box] = _touching(plain | opened.astype(bool), plain)
    return found


def _around(mask: np.ndarray, margin_px: int) -> tuple[slice, slice]:
    """Rows and columns of what is set, and of a margin inside the picture."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    rows = slice(max(0, y - margin_px), y + height + margin_px)
    return rows, slice(max(0, x - margin_px), x + width + margin_px)


def _ink(picture: _Picture) -> np.ndarray:
    stain = _Stain.of(picture.sample)
    coarse = picture.coarse(INK_MPP)
    is_plain, is_faint, is_strange, is_strange_faint = (
        partial(test, stain=stain) for test in (_plain_ink, _faint_ink, _strange, _strange_faint)
    )
    least_px = MIN_INK_UM2 / coarse.mpp**2
    plain, strange = (drop_small(m, least_px) for m in coarse.where(is_plain, is_strange))
    stroke = _strokes(coarse, plain, is_faint)
    if strange.any():
        [glass] = coarse.where(lambda od: od.most < GLASS_OD)
        strange = _on_glass(strange, glass | stroke)
        stroke |= _strokes(coarse, strange, is_strange_faint)
    height, width = picture.levels.shape[:2]
    if not stroke.any():
        return np.zeros((height, width), bool)
    ink = cv2.resize(stroke.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return cv2.dilate(ink, _disk(INK_GROW_UM, picture.mpp)).astype(bool)


def _fill_holes(mask: np.ndarray, least_px: float, forbidden: np.ndarray) -> np.ndarray:
    filled = mask.copy()
    filled.reshape(-1)[_in_small(~(mask | forbidden), least_px)] = True
    return filled


def _stained(picture: _Picture, free: np.ndarray) -> np.ndarray:
    """(h, w) bool: stain wherever `free`, its gaps closed, and fat between its walls.

    Fat is empty cells between walls thinner than a px. What is faintly colored and thin is taken
    for walls, and joined over the width of a cell; dense tissue is left out of that, so that
    its own outline stays.
    """
    noise, mpp = _glass_noise(picture.sample), picture.mpp
    sample = picture.sample.at(free.ravel()[:: sample_step(free.size)])
    floor = min(max(SATURATION_FLOOR, noise), SATURATION_CEILING)
    least = _otsu(sample.saturation, floor, SATURATION_CEILING)
    dense = _otsu(sample.mean, DENSITY_FLOOR, DENSITY_CEILING)
    stained, colored, faintest = picture.where(
        lambda od: (od.saturation > least) | ((od.saturation > least / 2) & (od.mean > dense)),
        lambda od: od.saturation > floor,
        lambda od: od.saturation > max(WALL_SATURATION, noise),
    )
    return _joined((stained, colored, faintest), free, mpp, picture.threads)


def _joined(
    masks: tuple[np.ndarray, np.ndarray, np.ndarray], free: np.ndarray, mpp: float, threads: int
) -> np.ndarray:
    """(h, w) bool: what is stained, and walls in the fainter masks, with their gaps closed."""
    bulk_px, close_px, walls_px = (
        _radius_px(radius, mpp) for radius in (BULK_UM, CLOSE_UM, WALLS_CLOSE_UM)
    )
    rim_px = max(HALO_PX, bulk_px, close_px, walls_px)
    everywhere, allowed, dense, color, faint = (
        Bits.of(mask, rim_px) for mask in (np.ones_like(free), free, *masks)
    )
    dense &= allowed
    bulk = dense.opened(ellipse(bulk_px), everywhere)
    halo = bulk.grown(square(HALO_PX))
    walls = ((color & halo) | (faint - halo)) & allowed - bulk.grown(ellipse(bulk_px))
    gaps = [(walls, walls_px), (dense, close_px)]
    one, other = in_order(lambda gap: gap[0].closed(ellipse(gap[1])), gaps, threads)
    return (one | other).mask()


def tissue_map(
    thumbnail: np.ndarray,
    mpp: float,
    min_area_um2: float = 20_000.0,
    min_hole_um2: float = 10_000.0,
    threads: int = 1,
) -> TissueMap:
    """Tissue and ink on a thumbnail.

    Args:
        thumbnail: (h, w, 3) uint8 RGB, near 8 µm/px.
        mpp: µm/px of the thumbnail.
        min_area_um2: smaller specks are dropped.
        min_hole_um2: smaller holes are filled.
        threads: that look at it side by side; the masks are the same with any number.

    Returns:
        The two masks, with the glass color that they were judged against.
    """
    white = glass_white(thumbnail)
    sigma_px = SMOOTH_UM / mpp
    smooth = cv2.GaussianBlur(thumbnail, (0, 0), sigma_px) if sigma_px > MIN_BLUR_PX else thumbnail
    picture = _Picture(smooth, white, mpp, threads)
    frame = _frame(picture)
    if frame.any():  # is glass from here on
        glass = np.ceil(white).astype(np.uint8)
        picture = replace(picture, levels=np.where(frame[..., None], glass, smooth))
    pen = _ink(picture) & ~frame
    other = pen | frame
    stained = _stained(picture, ~other) & ~other
    tissue = _fill_holes(stained, min_hole_um2 / mpp**2, other)
    return TissueMap(drop_small(tissue, min_area_um2 / mpp**2), pen, mpp, white)


MASKERS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "otsu": maskers.otsu,
    "morphological": maskers.morphological,
}
"""Config word → another way to tell tissue, beside `stain`, which is `tissue_map` itself."""


def masked(
    thumbnail: np.ndarray,
    mpp: float,
    masker: str = "stain",
    min_area_um2: float = 20_000.0,
    min_hole_um2: float = 10_000.0,
    threads: int = 1,
) -> TissueMap:
    """Tissue and ink by the masker that the config names; arguments as of `tissue_map`.

    Args:
        masker: `stain`, or a key of `MASKERS`; ink and frame are told as by `stain`, and are never
            tissue.
    """
    found = tissue_map(thumbnail, mpp, min_area_um2, min_hole_um2, threads)
    if masker == "stain":
        return found
    other = found.pen | _frame(_Picture(thumbnail, found.white, mpp))
    tissue = MASKERS[masker](thumbnail, mpp) & ~other
    tissue = _fill_holes(tissue, min_hole_um2 / mpp**2, other)
    return replace(found, tissue=drop_small(tissue, min_area_um2 / mpp**2))
