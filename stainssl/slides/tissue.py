"""Tissue segmentation on a thumbnail, without glass, ink, frames, shadows and dust.

Colors are optical densities relative to the slide's own glass, so that grey or tinted glass is not
tissue. Saturation here means the difference between the largest and smallest channel of the
optical density: pale stain has it, while shadows, glass edges and black frames do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import cv2
import numpy as np

from stainssl.runtime.parallel import parallel_map
from stainssl.slides import maskers
from stainssl.slides.bits import Bits, ellipse, square
from stainssl.slides.glass import brightest_smooth_area

SMOOTH_UM = 4.0  # standard deviation of the blur that removes JPEG and sensor noise
# Otsu's thresholds are clamped to these (base-10 optical density): below the floor is the noise of
# glass; above the ceiling, a dark tumour would raise the threshold above pale stroma and fat.
SATURATION_FLOOR, SATURATION_CEILING = 0.012, 0.03
DENSITY_FLOOR, DENSITY_CEILING = 0.02, 0.06
NOISE_DEVIATIONS = 4.0  # stain exceeds the median saturation of glass by this many deviations
WALL_SATURATION = 0.006  # least saturation of fat cell walls, thinner than a px; or that of noise
HALO_PX = 8  # a JPEG block: the color of dense tissue bleeds this far onto glass
CLOSE_UM = 16.0  # closing radius of tissue
WALLS_CLOSE_UM = 56.0  # closing radius of fat cell walls; the cells are about 80–110 µm wide
BULK_UM = 24.0  # opening radius that removes walls from dense tissue
INK_GROW_UM = 24.0  # dilation of ink, for the soft edge of a stroke
INK_REACH_UM = 2000.0  # faint ink is followed this far from ink of a plain color
INK_MPP = 16.0  # µm/px at which ink is detected: strokes are wide
FRAME_DENSITY = 1.2  # least optical density of a black frame, which touches the border
SAMPLE = 100_000  # pixels from which thresholds and the color of glass are estimated
MIN_GLASS_SAMPLE = 1000  # least number of glass pixels from which its noise is estimated
MAD_TO_DEVIATION = 1.4826  # standard deviation over median absolute deviation, if normal
TOP_PERCENT = 99.5  # percentile at which Otsu's histogram ends, so that specks do not stretch it
MIN_BLUR_PX = 0.3  # a blur with a smaller standard deviation changes nothing
STRIP_PX = 64  # rows processed at once
STRIPS = 2  # strips per task of a thread
EPS_OD = 1e-3  # least denominator of a ratio of optical densities

# Glass, in grey levels.
MIN_GLASS = 180  # glass is not darker in any channel
GLASS_SPREAD = 40  # largest difference between the channels of glass
MIN_PADDING = 254  # pure white, by which scanners fill areas that were not scanned
PADDING_SHARE = 0.1  # padding is left out if more than this share of bright px is not padding
GLASS_SHARE = 0.005  # least share of the image that must be glass to measure its color
MODE_WIDTH, MODE_REACH = 5, 3  # window of the mode of grey levels; distance from it that is glass
DEFAULT_WHITE, DEFAULT_REACH = 245.0, 15.0  # for an image without glass

# Ink. Names: `_OD` is the optical density of a channel, `_MEAN` that of the mean of the channels,
# `_TIMES` the latter in multiples of the median of the slide's stained px, `RED_GREEN` the ratio of
# red to green density. At 16 µm/px, real H&E has red over green 0.06–0.8, blue over green
# 0.35–0.85, and no channel above 1.1.
MIN_INK_UM2 = 10_000.0  # smaller spots are pigment or folds
BLUE_OD, BLUE_RED_GREEN, BLUE_MARGIN_OD = 0.12, 1.15, 0.02  # blue, green ink: red absorbed most
OVER_TISSUE_OD, OVER_TISSUE_TIMES = 0.2, 1.2  # the same over tissue: density of red
CLEAR_OD, CLEAR_RED_GREEN, CLEAR_TIMES = 0.35, 0.7, 1.3  # blue ink over tissue: density of red
CLEAR_OF_USUAL, CLEAR_BLUE_RED = 0.6, 0.7  # its blue over red: times the slide's median; at most
RED_OD, RED_RED_GREEN, RED_BLUE_GREEN = 0.45, 0.16, 0.75  # red ink: green; blood has more red
BLACK_OD, BLACK_EVEN = 0.6, 0.72  # black ink: smallest channel; its ratio to the largest
BLACK_LESS_EVEN, BLACK_TIMES = 0.5, 2.5  # the same over tissue
OFTEN_PERCENT = 95  # percentile of the slide's red over green that its limits are based on
BLUEST_MORE, MIN_BLUEST, MAX_BLUEST = 0.1, 0.9, 1.05  # `_Stain.bluest`: added; range
BEYOND_MORE, MIN_BEYOND, BEYOND_UNKNOWN = 0.2, 0.97, 1.15  # `_Stain.beyond`: added; least; default
# Faint ink: the same colors, where they are connected to ink of a plain color.
FAINT_TIMES = 1.6
FAINT_BLUE_OD, FAINT_BLUE_RED_GREEN = 0.06, 1.05
FAINT_RED_OD, FAINT_RED_RED_GREEN, FAINT_RED_BLUE_GREEN = 0.25, 0.3, 0.62
FAINT_DARK_OD, FAINT_DARK_RED_GREEN = 0.25, 0.8
FAINT_OVER_TISSUE_TIMES = 1.15
FAINT_BLACK_OD, FAINT_BLACK_EVEN = 0.3, 0.55
# Unusual ink: colors that a stain may have too, and that are ink if the stroke lies on glass.
YELLOW_OD, YELLOW_BLUE_GREEN = 0.2, 1.25  # orange, yellow, brown: density of blue
VIOLET_OD, VIOLET_RED_GREEN = 0.3, 0.25  # density of green; eosin has less red
VIOLET_BLUE_GREEN, VIOLET_OF_USUAL = 0.35, 0.72  # at most; times the slide's median
PINK_OD, PINK_RED_GREEN = 0.7, 0.04  # density of green; eosin has a red over green from 0.07
OPAQUE_OD, OPAQUE_TIMES = 1.6, 4.0  # largest channel, above that of any tissue
FAINT_STRANGE_OD, FAINT_YELLOW_BLUE_GREEN = 0.08, 1.0
MIXED_MEAN, MIXED_RED_GREEN = 0.1, 0.75  # px to count: least density; grey and green have more red
MIXED_BLUE_GREEN, MIXED_SHARE = 0.9, 0.3  # between H&E and yellow; least share if yellow is stain
RIM_PX = (2, 4)  # distance from a component, at `INK_MPP`, where its surroundings are examined
GLASS_RIM, GLASS_OD = 0.5, 0.06  # least share of the rim that is glass; largest channel of glass


@dataclass(frozen=True)
class TissueMap:
    """Tissue mask and ink mask of a thumbnail, (h, w) bool each, which do not overlap."""

    tissue: np.ndarray
    ink: np.ndarray
    mpp: float  # µm/px
    white: np.ndarray  # (3,) float32, color of glass in grey levels


def sample_step(pixels: int) -> int:
    """Step of a regular subsample of about `SAMPLE` pixels; 1 if there are fewer."""
    return max(1, pixels // SAMPLE)


def glass_white(image: np.ndarray) -> np.ndarray:
    """Estimate the color of empty glass: the most frequent bright grey, without white padding.

    If nothing is bright and grey, as on an under-exposed or tinted slide, it is the color of the
    brightest large smooth area, or failing that a high percentile of the grey levels.

    Args:
        image: (h, w, 3) uint8 RGB.

    Returns:
        (3,) float32 grey levels, 180–255, or less on an under-exposed slide.
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
    """Base-10 optical density, −log10((I + 1) / (white + 1)), not below 0.

    Args:
        image: (h, w, 3) uint8 RGB.
        white: grey level without absorption, one or (3,).

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
    """(3, 256) float32 optical density of every grey level, by channel."""
    white = np.broadcast_to(np.asarray(white, np.float32), (3,))[:, None]
    levels = np.arange(1, 257, dtype=np.float32)
    return np.maximum(-np.log10(levels / (white + 1)), 0).astype(np.float32)


@dataclass(frozen=True)
class _Density:
    """Optical densities of pixels, as float32 arrays of one shape."""

    red: np.ndarray
    green: np.ndarray
    blue: np.ndarray
    least: np.ndarray  # smallest channel
    most: np.ndarray  # largest channel

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean of the channels."""
        return (self.red + self.green + self.blue) / 3

    @cached_property
    def saturation(self) -> np.ndarray:
        """Difference of the largest and the smallest channel."""
        return self.most - self.least

    def at(self, chosen: Any) -> _Density:
        """Select pixels by an index or mask."""
        channels = (self.red, self.green, self.blue, self.least, self.most)
        return _Density(*(values[chosen] for values in channels))


Test = Callable[[_Density], np.ndarray]  # pixelwise condition


@dataclass(frozen=True)
class _Picture:
    """A thumbnail whose optical densities are computed in strips.

    As whole arrays of floats, they would take ten times its memory.
    """

    levels: np.ndarray  # (h, w, 3) uint8
    white: np.ndarray
    mpp: float
    threads: int = 1

    @cached_property
    def _tables(self) -> np.ndarray:
        return _density_of_levels(self.white)

    def _density(self, pixels: np.ndarray) -> _Density:
        # By channel: OpenCV's lookup in three tables at once takes twice as long.
        channels = zip(cv2.split(pixels), self._tables, strict=True)
        red, green, blue = (cv2.LUT(levels, table) for levels, table in channels)
        least, most = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
        return _Density(red, green, blue, least, most)

    @cached_property
    def sample(self) -> _Density:
        """(n,) optical densities of a regular subsample of the pixels."""
        pixels = self.levels.reshape(-1, 1, 3)
        pixels = np.ascontiguousarray(pixels[:: sample_step(len(pixels))])
        return self._density(pixels).at(np.s_[:, 0])

    def where(self, *tests: Test) -> list[np.ndarray]:
        """(h, w) bool mask of each pixelwise test, computed in strips that fit in the cache."""
        found = [np.empty(self.levels.shape[:2], bool) for _ in tests]
        height, several = len(self.levels), STRIPS * STRIP_PX

        def work(start: int) -> None:
            for top in range(start, min(start + several, height), STRIP_PX):
                rows = slice(top, top + STRIP_PX)
                density = self._density(self.levels[rows])
                for mask, test in zip(found, tests, strict=True):
                    mask[rows] = test(density)

        for _ in parallel_map(work, range(0, height, several), self.threads):
            pass
        return found

    def coarse(self, mpp: float) -> _Picture:
        """Downsample to about `mpp` µm/px; unchanged if it is not finer."""
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
    """(h, w) int32 labels of the 8-connected components of `mask`; 0 is the background."""
    found = cv2.connectedComponents(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)
    return np.asarray(found[1], np.int32)


def drop_small(mask: np.ndarray, least_px: float) -> np.ndarray:
    """Remove connected components of fewer than `least_px` pixels from a (h, w) bool mask."""
    kept = mask.copy()
    kept.reshape(-1)[_in_small(mask, least_px)] = False
    return kept


def _in_small(mask: np.ndarray, least_px: float) -> np.ndarray:
    """(n,) flat indices of the pixels of components of fewer than `least_px` pixels.

    Components are counted by runs of pixels within rows, which are far fewer than the pixels.
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
    """Connected components of `mask` that contain a pixel of `seeds`; (h, w) bool each."""
    labels = _pieces(mask)
    kept = np.zeros(labels.max() + 1, bool)
    kept[labels[seeds]] = True
    kept[0] = False
    return np.take(kept, labels)


def _otsu(values: np.ndarray, floor: float, ceiling: float) -> float:
    """Otsu's threshold of (n,) `values`, clamped to `floor` and `ceiling`."""
    if values.size == 0:
        return floor
    most = max(float(np.percentile(values, TOP_PERCENT)), 1e-6)
    scaled = np.clip(values / most * 255, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(scaled.reshape(-1, 1), 0, 255, cv2.THRESH_OTSU)
    return float(np.clip(threshold / 255 * most, floor, ceiling))


def _glass_noise(sample: _Density) -> float:
    """Largest saturation that glass has by noise; 0 if there is too little glass."""
    glass = sample.saturation[sample.mean < DENSITY_FLOOR]
    if len(glass) < MIN_GLASS_SAMPLE:
        return 0.0
    middle = float(np.median(glass))
    deviation = MAD_TO_DEVIATION * float(np.median(np.abs(glass - middle)))
    return middle + NOISE_DEVIATIONS * deviation


def _frame(picture: _Picture) -> np.ndarray:
    """(h, w) bool mask of black frames around a slide, including their soft edge.

    A frame, as added by viewers and scanners, is black in every channel and touches the border.
    """
    # Grey levels whose optical density is `FRAME_DENSITY`.
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
    """Colors of a slide's own stain, from which ink is distinguished.

    Attributes:
        density: median optical density of the stained px.
        bluest: red over green that hardly any stained px exceeds.
        beyond: red over green that no stained px exceeds.
        clearest: least blue over red of a stained area.
        purest: least blue over green of a stained area.
        yellow: whether the stain itself has brown or yellow (DAB, saffron, blood).
    """

    density: float
    bluest: float
    beyond: float
    clearest: float
    purest: float
    yellow: bool

    @classmethod
    def of(cls, sample: _Density) -> _Stain:
        """Estimate from a sample; ink that covers less than a twentieth has little effect."""
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
    """Whether the stain itself has colors that absorb blue most.

    DAB and saffron are mixed with other stains, so that there are all intermediate colors; a
    stroke next to tissue has a single color.
    """
    grey = stained.red > MIXED_RED_GREEN * stained.green
    seen = stained.at((stained.mean > MIXED_MEAN) & ~grey)
    yellow = (seen.blue > YELLOW_BLUE_GREEN * seen.green).sum()
    mixed = (seen.blue > MIXED_BLUE_GREEN * seen.green).sum() - yellow
    return bool(mixed > MIXED_SHARE * yellow)


def _plain_ink(od: _Density, stain: _Stain) -> np.ndarray:
    """Mask of pixels with colors that H&E does not have.

    H&E absorbs green most. Blue and green ink absorb red most; red ink absorbs blue nearly as much
    as green, and no red; black ink absorbs all channels equally, and far more than the tissue
    under it.
    """
    blue = (od.red > BLUE_OD) & (od.red > BLUE_RED_GREEN * od.green + BLUE_MARGIN_OD)
    beyond = (od.red > OVER_TISSUE_OD) & (od.red > stain.beyond * od.green)
    over_tissue = beyond & (od.mean > OVER_TISSUE_TIMES * stain.density)
    # Blue ink over tissue has the color of pure hematoxylin, which does not fill areas as wide as
    # a stroke: at this scale there is eosin everywhere, which absorbs blue and hardly any red.
    clear = (od.blue < stain.clearest * od.red) & (od.mean > CLEAR_TIMES * stain.density)
    blue_over_tissue = clear & (od.red > CLEAR_RED_GREEN * od.green) & (od.red > CLEAR_OD)
    no_red = (od.green > RED_OD) & (od.red < RED_RED_GREEN * od.green)
    red = no_red & (od.blue > RED_BLUE_GREEN * od.green)
    dense = od.mean > BLACK_TIMES * stain.density
    even = (od.least > BLACK_EVEN * od.most) | ((od.least > BLACK_LESS_EVEN * od.most) & dense)
    return blue | over_tissue | blue_over_tissue | red | ((od.least > BLACK_OD) & even)


def _faint_ink(od: _Density, stain: _Stain) -> np.ndarray:
    """Mask of colors that stain could have too, and that are ink if connected to plain ink."""
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
    """Mask of colors that this slide's stain does not have, although other stains may.

    Orange, yellow and brown ink absorb blue most, as DAB does; violet ink absorbs less blue than
    any mixture of hematoxylin and eosin; neon pink absorbs no red.
    """
    yellow = (od.blue > YELLOW_BLUE_GREEN * od.green) & (od.blue > YELLOW_OD) & (not stain.yellow)
    violet = (od.blue < stain.purest * od.green) & (od.red > VIOLET_RED_GREEN * od.green)
    pink = (od.green > PINK_OD) & (od.red < PINK_RED_GREEN * od.green)
    opaque = od.most > max(OPAQUE_OD, OPAQUE_TIMES * stain.density)
    return yellow | (violet & (od.green > VIOLET_OD)) | pink | opaque


def _strange_faint(od: _Density, stain: _Stain) -> np.ndarray:
    """Mask of the colors of `_strange` where they are pale or lie on tissue."""
    yellow = (od.blue > FAINT_YELLOW_BLUE_GREEN * od.green) & (od.blue > FAINT_STRANGE_OD)
    violet = (od.blue < stain.purest * od.green) & (od.green > FAINT_STRANGE_OD)
    return (yellow & (not stain.yellow)) | violet


def _on_glass(mask: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """Connected components of `mask` that are surrounded mostly by glass.

    Ink next to tissue is. Pigment, blood, and tissue with only one of the stains are surrounded
    by tissue of other colors.
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
    """Mask of plain ink, and of faint ink connected to it within `INK_REACH_UM`."""
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
    """Rows and columns of the bounding box of a mask, with a margin, clipped to the image."""
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
    """(h, w) bool mask of stained tissue within `free`, with gaps closed, and of fat.

    Fat consists of empty cells between walls thinner than a px. Thin, faintly colored structures
    are taken as walls, and closed over the width of a cell. Dense tissue is left out of this, so
    that its outline does not change.
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
    """Close the gaps of stained tissue, and of fat cell walls in the fainter masks.

    Args:
        masks: (h, w) bool masks of stained, faintly colored and most faintly colored px.
        free: (h, w) bool, px that may be tissue.
        mpp: µm/px of the masks.
        threads: number of threads.
    """
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
    one, other = parallel_map(lambda gap: gap[0].closed(ellipse(gap[1])), gaps, threads)
    return (one | other).mask()


def tissue_map(
    thumbnail: np.ndarray,
    mpp: float,
    min_area_um2: float = 20_000.0,
    min_hole_um2: float = 10_000.0,
    threads: int = 1,
) -> TissueMap:
    """Segment tissue and ink on a thumbnail.

    Args:
        thumbnail: (h, w, 3) uint8 RGB, at about 8 µm/px.
        mpp: µm/px of the thumbnail.
        min_area_um2: smaller components of tissue are removed.
        min_hole_um2: smaller holes in tissue are filled.
        threads: number of threads; the result does not depend on it.

    Returns:
        Tissue and ink masks, with the color of glass used for optical densities.
    """
    white = glass_white(thumbnail)
    sigma_px = SMOOTH_UM / mpp
    smooth = cv2.GaussianBlur(thumbnail, (0, 0), sigma_px) if sigma_px > MIN_BLUR_PX else thumbnail
    picture = _Picture(smooth, white, mpp, threads)
    frame = _frame(picture)
    if frame.any():  # replaced by glass
        glass = np.ceil(white).astype(np.uint8)
        picture = replace(picture, levels=np.where(frame[..., None], glass, smooth))
    ink = _ink(picture) & ~frame
    other = ink | frame
    stained = _stained(picture, ~other) & ~other
    tissue = _fill_holes(stained, min_hole_um2 / mpp**2, other)
    return TissueMap(drop_small(tissue, min_area_um2 / mpp**2), ink, mpp, white)


MASKERS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "otsu": maskers.otsu,
    "morphological": maskers.morphological,
}
"""Name in the config → masker, in addition to `stain`, which is `tissue_map` itself."""


def segment_tissue(
    thumbnail: np.ndarray,
    mpp: float,
    masker: str = "stain",
    min_area_um2: float = 20_000.0,
    min_hole_um2: float = 10_000.0,
    threads: int = 1,
) -> TissueMap:
    """Segment tissue and ink by the masker named in the config; arguments as for `tissue_map`.

    Args:
        masker: `stain`, or a key of `MASKERS`. Ink and frames are always detected as by `stain`,
            and are never tissue.
    """
    found = tissue_map(thumbnail, mpp, min_area_um2, min_hole_um2, threads)
    if masker == "stain":
        return found
    other = found.ink | _frame(_Picture(thumbnail, found.white, mpp))
    tissue = MASKERS[masker](thumbnail, mpp) & ~other
    tissue = _fill_holes(tissue, min_hole_um2 / mpp**2, other)
    return replace(found, tissue=drop_small(tissue, min_area_um2 / mpp**2))
