"""Where tissue is on a thumbnail: not glass, ink, frame, shadow or dust.

Colour is judged in optical density against the slide's own glass, so that a grey or tinted white
is not tissue. Saturation here is the spread of a pixel's optical densities (largest channel less
smallest): stain has it however pale, and shadow, glass edges and black frames have none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from stainssl.slides import maskers

SMOOTH_UM = 4.0  # standard deviation of the blur that takes out JPEG and sensor noise
# Otsu's threshold is kept inside these (base-10 optical density): below the floor is the noise of
# glass; above the ceiling a dark tumour would push the threshold past pale stroma and fat.
SATURATION_FLOOR, SATURATION_CEILING = 0.012, 0.03
DENSITY_FLOOR, DENSITY_CEILING = 0.02, 0.06
NOISE_DEVIATIONS = 4.0  # of the glass's own saturation, above its median, before it is stain
WALL_SATURATION = 0.006  # of the walls of fat cells, thinner than a px; noise raises it
HALO_PX = 8  # a block of JPEG: so far the colour of dense tissue bleeds onto glass
CLOSE_UM = 16.0  # radius that joins tissue
WALLS_CLOSE_UM = 56.0  # radius that joins the walls of fat cells, which are some 80–110 µm wide
BULK_UM = 24.0  # radius of what is no wall
INK_GROW_UM = 24.0  # the soft edge of a stroke
INK_REACH_UM = 2000.0  # how far a faint stroke is followed from where its colour is plain
FRAME_DENSITY = 1.2  # what is black to this optical density and touches the border is no slide
SAMPLE = 200_000  # pixels that a threshold or the glass's colour is estimated from
INK_LEAST_UM2 = 10_000.0  # a smaller spot is pigment or a fold
STRIP_PX = 16  # rows that are tested at once
GLASS_LEAST = 180  # grey level below which nothing is taken for glass
DEFAULT_WHITE = 245.0  # where no glass is in the picture


@dataclass(frozen=True)
class TissueMap:
    """What a thumbnail shows, (h, w) bool each: `tissue` and `pen` never overlap."""

    tissue: np.ndarray
    pen: np.ndarray
    mpp: float  # µm/px
    white: np.ndarray  # (3,) float32, the grey levels of glass


def _sample(values: np.ndarray) -> np.ndarray:
    """Every n-th of the first axis, at most about `SAMPLE`."""
    return values[:: max(1, len(values) // SAMPLE)]


def glass_white(image: np.ndarray) -> np.ndarray:
    """The colour of empty glass: the commonest bright grey, padding of pure white left out.

    Args:
        image: (h, w, 3) uint8 RGB.

    Returns:
        (3,) float32, grey levels 180–255.
    """
    pixels = _sample(image.reshape(-1, 3))
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    bright = (low >= GLASS_LEAST) & (high - low <= 40)
    inner = bright & (low < 254)
    candidates = pixels[inner if inner.sum() > 0.1 * bright.sum() else bright]
    if len(candidates) < 0.005 * len(pixels):
        top = np.percentile(pixels, 99, axis=0)
        return np.clip(top, DEFAULT_WHITE - 15, 255).astype(np.float32)
    grey = candidates.mean(axis=1)
    counts = np.bincount(grey.astype(int), minlength=256).astype(float)
    mode = int(np.argmax(np.convolve(counts, np.ones(5), "same")))
    return np.median(candidates[np.abs(grey - mode) <= 3], axis=0).astype(np.float32)


def optical_density(image: np.ndarray, white: np.ndarray | float = 255.0) -> np.ndarray:
    """−log10((I + 1) / (white + 1)), not below 0.

    Args:
        image: (h, w, 3) uint8 RGB.
        white: grey level(s) of no absorption.

    Returns:
        (h, w, 3) float32, 0–2.41.
    """
    white = np.broadcast_to(np.asarray(white, np.float32), (3,))
    levels = np.arange(1, 257, dtype=np.float32)[:, None]
    table = np.maximum(-np.log10(levels / (white + 1)), 0).astype(np.float32)
    return cv2.LUT(np.ascontiguousarray(image), table[None])


@dataclass(frozen=True)
class _Planes:
    """Optical densities of a picture, (h, w) float32 each: its channels and what follows."""

    red: np.ndarray
    green: np.ndarray
    blue: np.ndarray
    least: np.ndarray
    most: np.ndarray
    density: np.ndarray  # the channels' mean

    @classmethod
    def of(cls, od: np.ndarray) -> _Planes:
        """The planes of (h, w, 3) float32."""
        red, green, blue = cv2.split(od)
        least, most = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
        return cls(red, green, blue, least, most, cv2.transform(od, np.full((1, 3), 1 / 3)))

    def where(self, test: Callable[[_Planes], np.ndarray]) -> np.ndarray:
        """(h, w) bool of a test of single pixels, made strip by strip: each fits in the cache."""
        found = np.empty(self.red.shape, bool)
        for top in range(0, len(found), STRIP_PX):
            rows = slice(top, top + STRIP_PX)
            found[rows] = test(_Planes(*(plane[rows] for plane in vars(self).values())))
        return found


def _disk(radius_um: float, mpp: float) -> np.ndarray:
    radius_px = max(1, round(radius_um / mpp))
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1,) * 2)


def _pieces(mask: np.ndarray) -> np.ndarray:
    """(h, w) int32: the number of the connected piece of `mask` that a pixel is of, 0 for none."""
    return np.asarray(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1], np.int32)


def drop_small(mask: np.ndarray, least_px: float) -> np.ndarray:
    """`mask` (h, w) bool without connected pieces of fewer than `least_px` pixels."""
    labels = _pieces(mask)
    large = np.bincount(labels.ravel()) >= least_px
    large[0] = False
    return np.take(large, labels)


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
    values = _sample(values)
    most = max(float(np.percentile(values, 99.5)), 1e-6)
    scaled = np.clip(values / most * 255, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(scaled.reshape(-1, 1), 0, 255, cv2.THRESH_OTSU)
    return float(np.clip(threshold / 255 * most, floor, ceiling))


def _glass_noise(saturation: np.ndarray, density: np.ndarray) -> float:
    """What the glass's own saturation reaches, 0 where there is too little glass to tell."""
    glass = _sample(saturation[density < DENSITY_FLOOR])
    if len(glass) < 1000:
        return 0.0
    middle = float(np.median(glass))
    return middle + NOISE_DEVIATIONS * 1.4826 * float(np.median(np.abs(glass - middle)))


def _frame(od_least: np.ndarray, mpp: float) -> np.ndarray:
    """(h, w) bool: black that touches the border, with its soft edge: what viewers and scanners
    put around a slide."""
    black = od_least > FRAME_DENSITY
    if not black.any():
        return black
    border = np.zeros_like(black)
    border[[0, -1]] = border[:, [0, -1]] = True
    frame = _touching(black, border & black).astype(np.uint8)
    return cv2.dilate(frame, _disk(2 * INK_GROW_UM, mpp)).astype(bool)


@dataclass(frozen=True)
class _Stain:
    """What a slide's own stain looks like, so that ink over tissue can be told from it.

    `bluest` is the red over green that hardly any of it reaches, `beyond` one that none does.
    """

    density: float
    bluest: float
    beyond: float

    @classmethod
    def of(cls, od: _Planes) -> _Stain:
        """By a sample of the picture; ink that covers less than a twentieth changes little."""
        step = max(1, od.density.size // SAMPLE)
        density, red, green = (p.ravel()[::step] for p in (od.density, od.red, od.green))
        stained = density > DENSITY_CEILING
        if not stained.any():
            return cls(0.0, 1.05, 1.15)
        often = float(np.percentile(red[stained] / np.maximum(green[stained], 1e-3), 95))
        bluest, beyond = min(max(often + 0.1, 0.9), 1.05), max(often + 0.2, 0.97)
        return cls(float(np.median(density[stained])), bluest, beyond)


def _plain_ink(od: _Planes, stain: _Stain) -> np.ndarray:
    """(h, w) bool, pixels of a colour that no H&E stain has.

    Stain absorbs green the most. Blue and green ink absorb red the most; red ink absorbs blue
    nearly as much as green and no red; black ink absorbs all alike, and far more than the tissue
    under it.
    """
    blue_or_green = (od.red > 0.12) & (od.red > 1.15 * od.green + 0.02)
    over_tissue = (od.red > stain.beyond * od.green) & (od.density > 1.2 * stain.density)
    red_ink = (od.green > 0.45) & (od.red < 0.25 * od.green) & (od.blue > 0.75 * od.green)
    black = (od.least > 0.6) & (
        (od.least > 0.72 * od.most)
        | ((od.least > 0.5 * od.most) & (od.density > 2.5 * stain.density))
    )
    return blue_or_green | (over_tissue & (od.red > 0.2)) | red_ink | black


def _faint_ink(od: _Planes, stain: _Stain) -> np.ndarray:
    """(h, w) bool, pixels that stain could have too, and that are ink where they join plain ink."""
    dense = od.density > 1.6 * stain.density
    blue_or_green = (od.red > 0.06) & (od.red > 1.05 * od.green)
    red_ink = (od.green > 0.25) & (od.red < 0.3 * od.green) & (od.blue > 0.62 * od.green)
    dark = (od.least > 0.25) & (od.red > 0.8 * od.green) & dense
    over_tissue = (od.red > stain.bluest * od.green) & (od.density > 1.15 * stain.density)
    black = (od.least > 0.3) & (od.least > 0.55 * od.most) & dense
    return blue_or_green | red_ink | dark | over_tissue | black


def _ink(od: _Planes, mpp: float) -> np.ndarray:
    stain = _Stain.of(od)
    plain = od.where(lambda strip: _plain_ink(strip, stain))
    if plain.any():
        plain = drop_small(plain, INK_LEAST_UM2 / mpp**2)
    if not plain.any():
        return plain
    away_um = cv2.distanceTransform((~plain).astype(np.uint8), cv2.DIST_L2, 3) * mpp
    faint = od.where(lambda strip: _faint_ink(strip, stain)) & (away_um < INK_REACH_UM)
    opened = cv2.morphologyEx(faint.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    ink = _touching(plain | opened.astype(bool), plain)
    return cv2.dilate(ink.astype(np.uint8), _disk(INK_GROW_UM, mpp)).astype(bool)


def _fill_holes(mask: np.ndarray, least_px: float, forbidden: np.ndarray) -> np.ndarray:
    holes = ~mask & ~forbidden
    return mask | (holes & ~drop_small(holes, least_px))


def _close(mask: np.ndarray, radius_um: float, mpp: float) -> np.ndarray:
    """Morphological closing; what lies outside the picture joins nothing."""
    disk = _disk(radius_um, mpp)
    pad = disk.shape[0] // 2
    padded = np.pad(mask.astype(np.uint8), pad)
    return cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disk)[pad:-pad, pad:-pad].astype(bool)


def _stained(od: _Planes, free: np.ndarray, mpp: float) -> np.ndarray:
    """(h, w) bool: stain wherever `free`, its gaps closed, and fat between its walls.

    Fat is empty cells between walls thinner than a px. What is faintly coloured and thin is taken
    for walls, and joined over the width of a cell; dense tissue is left out of that, so that
    its own outline stays.
    """
    density, saturation = od.density, od.most - od.least
    noise = _glass_noise(saturation, density)
    floor = min(max(SATURATION_FLOOR, noise), SATURATION_CEILING)
    least = _otsu(saturation[free], floor, SATURATION_CEILING)
    dense = density > _otsu(density[free], DENSITY_FLOOR, DENSITY_CEILING)
    stained = free & ((saturation > least) | (dense & (saturation > least / 2)))
    bulk = cv2.morphologyEx(stained.astype(np.uint8), cv2.MORPH_OPEN, _disk(BULK_UM, mpp))
    near_bulk = cv2.dilate(bulk, _disk(BULK_UM, mpp)).astype(bool)
    halo = cv2.dilate(bulk, np.ones((2 * HALO_PX + 1,) * 2, np.uint8)).astype(bool)
    faintest = np.where(halo, np.float32(floor), np.float32(max(WALL_SATURATION, noise)))
    walls = free & ~near_bulk & (saturation > faintest)
    return _close(stained, CLOSE_UM, mpp) | _close(walls, WALLS_CLOSE_UM, mpp)


def tissue_map(
    thumbnail: np.ndarray,
    mpp: float,
    min_area_um2: float = 20_000.0,
    min_hole_um2: float = 10_000.0,
) -> TissueMap:
    """Tissue and ink on a thumbnail.

    Args:
        thumbnail: (h, w, 3) uint8 RGB, near 8 µm/px.
        mpp: µm/px of the thumbnail.
        min_area_um2: smaller specks are dropped.
        min_hole_um2: smaller holes are filled.

    Returns:
        The two masks, with the glass colour that they were judged against.
    """
    white = glass_white(thumbnail)
    sigma_px = SMOOTH_UM / mpp
    smooth = cv2.GaussianBlur(thumbnail, (0, 0), sigma_px) if sigma_px > 0.3 else thumbnail
    levels = optical_density(smooth, white)
    od = _Planes.of(levels)
    frame = _frame(od.least, mpp)
    if frame.any():
        levels[frame] = 0
        od = _Planes.of(levels)
    pen = _ink(od, mpp) & ~frame
    other = pen | frame
    stained = _stained(od, ~other, mpp) & ~other
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
) -> TissueMap:
    """Tissue and ink by the masker that the config names; arguments as of `tissue_map`.

    Args:
        masker: `stain`, or a key of `MASKERS`; ink and frame are told as by `stain`, and are never
            tissue.
    """
    found = tissue_map(thumbnail, mpp, min_area_um2, min_hole_um2)
    if masker == "stain":
        return found
    od = optical_density(thumbnail, found.white)
    other = found.pen | _frame(_Planes.of(od).least, mpp)
    tissue = MASKERS[masker](thumbnail, mpp) & ~other
    tissue = _fill_holes(tissue, min_hole_um2 / mpp**2, other)
    return replace(found, tissue=drop_small(tissue, min_area_um2 / mpp**2))


def tissue_mask(
    thumbnail: np.ndarray,
    mpp: float,
    min_area_um2: float = 20_000.0,
    min_hole_um2: float = 10_000.0,
) -> np.ndarray:
    """(h, w) bool of `tissue_map`: True where there is tissue."""
    return tissue_map(thumbnail, mpp, min_area_um2, min_hole_um2).tissue
