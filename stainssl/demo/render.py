"""Render a scene to pixels: concentrations of H and E, Beer–Lambert law, and a scanner."""

from __future__ import annotations

import cv2
import numpy as np
from numba import njit

from stainssl.demo.plan import SlidePlan
from stainssl.demo.scene import (
    BENIGN,
    CELL_PX,
    DARKNESS,
    EPITHELIUM,
    FAT,
    GLASS,
    LYMPHOCYTE,
    LYMPHOID,
    SHAPES,
    SPINDLE,
    STROMA,
    TUMOUR,
    TUMOUR_CELL,
    Scene,
    stamp_holes,
)  # fmt: skip
from stainssl.demo.sites import Site

NOISE_PX = 1024  # side of the noise fields, which are repeated over a slide at varying offsets
MEAN_CHROMATIN = 0.80  # relative to the concentration at the 99th percentile of tissue
MEAN_EOSIN = 0.46
BACKGROUND_HEMATOXYLIN = 0.10
# By kind of nucleus: clumps of chromatin, darker rim, nucleolus. They do not change the mean.
CHROMATIN = np.zeros((4, 3), np.float32)
CHROMATIN[SPINDLE] = (0.24, 0.15, 0.0)
CHROMATIN[LYMPHOCYTE] = (0.28, 0.20, 0.0)
CHROMATIN[EPITHELIUM] = (0.28, 0.28, 0.0)
CHROMATIN[TUMOUR_CELL] = (0.26, 0.36, 0.40)
LEVEL_SPREAD = np.array([0.17, 0.17, 0.17, 0.12])  # SD of ln(chromatin) between nuclei, by kind
RING = (0.04, 0.26)  # eosin of the membrane around a tumour cell, by her2
RING_AT_PX, RING_WIDTH_PX = 4.5, 1.1
RING_VISIBLE = 0.6  # visible share of the membranes; the rest is under nuclei or in holes
CAMERA_NOISE = 1.3  # standard deviation in grey levels
OD_STEPS = 4096
OD_MAX = 6.0
PEN_RGB = {"c": (0.25, 0.45, 0.85), "": (0.20, 0.62, 0.36)}


def _noise_tile(rng: np.random.Generator, sigma_px: float) -> np.ndarray:
    """(NOISE_PX, NOISE_PX) float32 periodic noise of variance 1, smoothed with `sigma_px`."""
    white = rng.standard_normal((NOISE_PX, NOISE_PX)).astype(np.float32)
    if sigma_px <= 0:
        return white
    frequency = np.fft.fftfreq(NOISE_PX)[:, None] ** 2 + np.fft.rfftfreq(NOISE_PX)[None, :] ** 2
    spectrum = np.fft.rfft2(white) * np.exp(-2 * (np.pi * sigma_px) ** 2 * frequency)
    field = np.fft.irfft2(spectrum, s=white.shape)
    return (field / field.std()).astype(np.float32)


def _fibre_profile(rng: np.random.Generator) -> np.ndarray:
    """(4096,) float32 profile of eosin across fibres, with mean 1."""
    line = np.zeros(4096)
    for width, weight in ((3, 0.35), (9, 0.45), (30, 0.35)):
        kernel = np.exp(-0.5 * (np.arange(-4 * width, 4 * width + 1) / width) ** 2)
        part = np.convolve(rng.standard_normal(4096 + 8 * width), kernel, "valid")
        line += weight * part / part.std()
    profile = np.clip(1 + 0.45 * line, 0.25, 2.2)
    return (profile / profile.mean()).astype(np.float32)


@njit(cache=True)
def _sample(field: np.ndarray, y: float, x: float) -> float:
    """Bilinear interpolation of a per-cell field; y, x in cells, integers at cell centres."""
    h, w = field.shape
    y, x = min(max(y, 0.0), h - 1.001), min(max(x, 0.0), w - 1.001)
    r, c = int(y), int(x)
    fy, fx = y - r, x - c
    top = field[r, c] * (1 - fx) + field[r, c + 1] * fx
    low = field[r + 1, c] * (1 - fx) + field[r + 1, c + 1] * fx
    return top * (1 - fy) + low * fy


@njit(cache=True)
def _adipocyte(x: float, y: float, size: float) -> float:
    """Membrane (1) or empty fat (0) at a point: borders of a jittered Voronoi diagram."""
    first, second = 1e9, 1e9
    cx, cy = int(x / size), int(y / size)
    for gy in range(cy - 1, cy + 2):
        for gx in range(cx - 1, cx + 2):
            h = (gx * 73856093) ^ (gy * 19349663)
            px = (gx + 0.5 + 0.35 * np.sin(h % 1013)) * size
            py = (gy + 0.5 + 0.35 * np.sin(h % 1511 + 2.0)) * size
            d = np.sqrt((x - px) ** 2 + (y - py) ** 2)
            if d < first:
                second, first = first, d
            elif d < second:
                second = d
    edge = (second - first) / 2.6
    return np.exp(-edge * edge)


@njit(cache=True)
def _texture(
    kind: int, is_fibrous: bool, fibre: float, profile: np.ndarray, n1: float, n2: float, n3: float
) -> float:
    """Eosin at a point relative to the mean around it; n1, n2, n3: noise from fine to coarse."""
    if is_fibrous:
        return 0.90 * profile[int(fibre * 520.0 + 7.0 * n2 + 3.0 * n3) & 4095] + 0.10 + 0.10 * n1
    if kind == LYMPHOID:
        return 1.0 + 0.26 * n2 + 0.14 * n1
    return 1.0 + 0.15 * n2 + 0.10 * n1 + 0.24 * n3


@njit(cache=True)
def _paint_ground(
    stain: np.ndarray, solid: np.ndarray, tissue: np.ndarray, region: np.ndarray,
    fibrous: np.ndarray, eosin: np.ndarray, thickness: np.ndarray, fibre: np.ndarray,
    profile: np.ndarray, fine: np.ndarray, middle: np.ndarray, wide: np.ndarray, hematoxylin: float,
) -> None:  # fmt: skip
    """Fill `stain` (h, w, 2) with the tissue between nuclei; fields are per cell."""
    h, w, _ = stain.shape
    cells = region.shape[0]
    for row in range(h):
        for column in range(w):
            a, b = row & 1023, column & 1023
            n1, n2, n3 = fine[a, b], middle[(a + 301) & 1023, (b + 77) & 1023], wide[b, a]
            wobble_y = row + 5.0 * wide[a, b]
            wobble_x = column + 5.0 * wide[(a + 517) & 1023, (b + 211) & 1023]
            edge = _sample(tissue, wobble_y / CELL_PX - 0.5, wobble_x / CELL_PX - 0.5)
            if edge <= 0.4:
                continue
            cy = min(max(int((wobble_y + 2.0 * n2) / CELL_PX), 0), cells - 1)
            cx = min(max(int((wobble_x + 2.0 * n1) / CELL_PX), 0), cells - 1)
            y, x = row / CELL_PX - 0.5, column / CELL_PX - 0.5
            full = solid[row, column] * min((edge - 0.4) / 0.2, 1.0) * _sample(thickness, y, x)
            if region[cy, cx] == FAT:
                full *= 0.95 * _adipocyte(wobble_x, wobble_y, 105.0)
            at = _sample(fibre, y, x)
            texture = _texture(region[cy, cx], fibrous[cy, cx], at, profile, n1, n2, n3)
            stain[row, column, 0] = full * hematoxylin * max(0.0, 1.0 + 0.3 * n2)
            stain[row, column, 1] = full * _sample(eosin, y, x) * max(0.05, texture)


@njit(cache=True)
def _paint_nuclei(
    stain: np.ndarray, kind: np.ndarray, x: np.ndarray, y: np.ndarray, long: np.ndarray,
    short: np.ndarray, angle: np.ndarray, outline: np.ndarray, level: np.ndarray,
    chromatin: np.ndarray, nucleolus: np.ndarray, ring: float, solid: np.ndarray, fine: np.ndarray,
) -> None:  # fmt: skip
    """Draw all nuclei, and the membranes of tumour cells, into `stain` (h, w, 2)."""
    h, w, _ = stain.shape
    for i in range(len(x)):
        c, s = np.cos(angle[i]), np.sin(angle[i])
        size = np.sqrt(long[i] * short[i])
        clump, rim, core = chromatin[kind[i], 0], chromatin[kind[i], 1], chromatin[kind[i], 2]
        membrane = ring if kind[i] == TUMOUR_CELL else 0.0
        reach = 1.35 * long[i] + (9.0 if membrane > 0 else 2.0)
        oy, ox = (i * 131) & 1023, (i * 197) & 1023
        for row in range(max(0, int(y[i] - reach)), min(h, int(y[i] + reach) + 1)):
            for column in range(max(0, int(x[i] - reach)), min(w, int(x[i] + reach) + 1)):
                dx, dy = column + 0.5 - x[i], row + 0.5 - y[i]
                u, v = (c * dx + s * dy) / long[i], (c * dy - s * dx) / short[i]
                rho = np.sqrt(u * u + v * v) + 1e-6
                cosine, sine = u / rho, v / rho
                cm, sm = cosine, sine
                edge = 1.0
                for k in range(outline.shape[1]):
                    cm, sm = cm * cosine - sm * sine, sm * cosine + cm * sine
                    amplitude, phase = outline[i, k, 0], outline[i, k, 1]
                    edge += amplitude * (cm * np.cos(phase) - sm * np.sin(phase))
                d = (rho - edge) * size
                if membrane > 0 and d > 1.0:
                    off = (d - RING_AT_PX) / RING_WIDTH_PX
                    here = membrane * solid[row, column]
                    stain[row, column, 1] += here * np.exp(-0.5 * off * off)
                alpha = 0.5 - d / 1.6
                if alpha <= 0:
                    continue
                alpha = min(alpha, 1.0)
                grain = fine[(row + oy) & 1023, (column + ox) & 1023]
                bump = (d + 1.6) / 1.5
                value = 1.0 - 0.40 * rim + 1.2 * rim * np.exp(-0.5 * bump * bump) + clump * grain
                if core > 0:
                    mx, my = dx - nucleolus[i, 0] * size, dy - nucleolus[i, 1] * size
                    value += core * np.exp(-(mx * mx + my * my) / 5.0)
                value = level[i] * max(value, 0.15)
                old = stain[row, column, 0]
                stain[row, column, 0] = max(
                    old, old + alpha * (value - old) * (1.0 if value > old else 0.0)
                )
                stain[row, column, 1] *= 1.0 - 0.45 * alpha


def _ground_eosin(scene: Scene, slide: SlidePlan) -> np.ndarray:
    """(n, n) float32 eosin between nuclei, reduced in tumour by the eosin of the membranes."""
    radius = SHAPES[TUMOUR_CELL][0]
    line = 2 * np.pi * (radius + RING_AT_PX) * RING_WIDTH_PX * np.sqrt(2 * np.pi)
    held = RING_VISIBLE * RING[slide.her2] * line / (np.pi * radius**2) * scene.coverage
    return (MEAN_EOSIN * scene.eosin - held * (scene.region == TUMOUR)).astype(np.float32)


def concentrations(scene: Scene, slide: SlidePlan, seed: int) -> np.ndarray:
    """(side, side, 2) float32 concentrations of H and E, about 1 at tissue's 99th percentile."""
    rng = slide.rng(seed, "texture")
    stain = np.zeros((scene.side_px, scene.side_px, 2), np.float32)
    solid = np.ones(stain.shape[:2], np.float32)
    stamp_holes(solid, scene.holes, 1.0)
    fine, middle, wide = (_noise_tile(rng, s) for s in (1.0, 2.2, 14.0))
    region = scene.region
    fibrous = np.isin(region, (GLASS, STROMA))
    fibrous |= ((region == TUMOUR) & scene.septum) | ((region == BENIGN) & ~scene.gland)
    _paint_ground(
        stain, solid, (region != GLASS).astype(np.float32), region, fibrous,
        _ground_eosin(scene, slide), scene.thickness, scene.fibre, _fibre_profile(rng),
        fine, middle, wide, BACKGROUND_HEMATOXYLIN,
    )  # fmt: skip
    count = len(scene.x)
    cell = (scene.y // CELL_PX).astype(int), (scene.x // CELL_PX).astype(int)
    level: np.ndarray = (
        MEAN_CHROMATIN * DARKNESS[scene.kind] * scene.chromatin[cell] * scene.thickness[cell]
    )
    level *= np.exp(rng.normal(0, 1, count) * LEVEL_SPREAD[scene.kind])
    _paint_nuclei(
        stain, scene.kind, scene.x, scene.y, scene.long, scene.short, scene.angle, scene.outline,
        level.astype(np.float32), CHROMATIN, rng.uniform(-0.4, 0.4, (count, 2)).astype(np.float32),
        RING[slide.her2], solid, middle,
    )  # fmt: skip
    _debris(rng, stain)
    return stain


def _debris(rng: np.random.Generator, stain: np.ndarray) -> None:
    """Add specks of both stains at random positions, in place."""
    side_px = stain.shape[0]
    for _ in range(int(30 * (side_px / 3072) ** 2) + 1):
        x, y = rng.integers(0, side_px, 2).tolist()
        speck = np.zeros((41, 41), np.float32)
        axes = tuple(rng.integers(2, 9, 2).tolist())
        cv2.ellipse(speck, (20, 20), axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
        soft = cv2.GaussianBlur(speck, (0, 0), float(rng.uniform(0.8, 2.5)))
        patch = stain[y : y + 41, x : x + 41]
        soft = soft[: patch.shape[0], : patch.shape[1], None]
        patch += soft * rng.uniform(0.1, 0.6, 2).astype(np.float32)


def pen_map(slide: SlidePlan, seed: int, side_px: int) -> np.ndarray:
    """(side / 8, side / 8) float32 in [0, 1]: ink per cell; zero unless the artefact is a pen."""
    n = side_px // CELL_PX
    ink = np.zeros((n, n), np.float32)
    if slide.artefact != "pen":
        return ink
    rng = slide.rng(seed, "pen")
    start, stop, bend = rng.uniform(0.1, 0.9, (3, 2))
    t = np.linspace(0, 1, 40)[:, None]
    path = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * stop
    cv2.polylines(ink, [(path * n).astype(np.int32)], False, 1.0, max(2, n // 40), cv2.LINE_AA)
    return ink


def blur_map(slide: SlidePlan, seed: int, side_px: int) -> np.ndarray:
    """(side / 8,) float32 in [0, 1]: degree of defocus of each row of cells."""
    n = side_px // CELL_PX
    if slide.artefact != "out-of-focus":
        return np.zeros(n, np.float32)
    centre = slide.rng(seed, "focus").uniform(0.4, 0.6) * n
    distance = np.abs(np.arange(n) - centre) / (n * 0.08)
    return np.clip((1.2 - distance) / 0.4, 0, 1).astype(np.float32)


@njit(cache=True)
def _transmit(
    stain: np.ndarray, vectors: np.ndarray, table: np.ndarray, scale: float
) -> np.ndarray:
    """(h, w, 3) float32 share of transmitted light, from a table over optical density."""
    h, w, _ = stain.shape
    out = np.empty((h, w, 3), np.float32)
    last = len(table) - 1
    for row in range(h):
        for column in range(w):
            for k in range(3):
                od = stain[row, column, 0] * vectors[0, k] + stain[row, column, 1] * vectors[1, k]
                out[row, column, k] = table[min(int(od * scale + 0.5), last)]
    return out


@njit(cache=True)
def _digitise(
    light: np.ndarray, white: np.ndarray, gamma: np.ndarray, fine: np.ndarray, noise: float
) -> np.ndarray:
    """(h, w, 3) uint8 image of the camera: white balance, gamma by table, noise."""
    h, w, _ = light.shape
    out = np.empty((h, w, 3), np.uint8)
    last = len(gamma) - 1
    for row in range(h):
        for column in range(w):
            for k in range(3):
                share = gamma[min(max(int(light[row, column, k] * last + 0.5), 0), last)]
                grain = fine[(row + 331 * k) & 1023, (column + 173 * k) & 1023]
                value = white[k] * share + noise * grain
                out[row, column, k] = np.uint8(min(max(value + 0.5, 0.0), 255.0))
    return out


def transmit(stain: np.ndarray, site: Site) -> np.ndarray:
    """(h, w, 3) float32 light through concentrations (h, w, 2), with a site's stain and blur."""
    vectors = np.array([site.hematoxylin, site.eosin]) * np.array(site.strength)[:, None]
    table = np.exp(-np.linspace(0, OD_MAX, OD_STEPS)).astype(np.float32)
    light = _transmit(stain, vectors.astype(np.float32), table, (OD_STEPS - 1) / OD_MAX)
    return cv2.GaussianBlur(light, (0, 0), site.blur_px)


def render(scene: Scene, slide: SlidePlan, seed: int) -> np.ndarray:
    """(side, side, 3) uint8 RGB image of a slide at level 0."""
    site, rng = slide.site_parameters, slide.rng(seed, "camera")
    light = transmit(concentrations(scene, slide, seed), site)
    _smear(light, blur_map(slide, seed, scene.side_px))
    _ink(light, pen_map(slide, seed, scene.side_px), PEN_RGB.get(slide.site, PEN_RGB[""]))
    gamma = np.linspace(0, 1, OD_STEPS).astype(np.float32) ** np.float32(site.gamma)
    white = np.array(site.white, np.float32)
    return _digitise(light, white, gamma, _noise_tile(rng, 0.0), CAMERA_NOISE)


def _smear(light: np.ndarray, amount: np.ndarray) -> None:
    """Blur the rows where `amount` (h / 8,) is above 0, in place."""
    rows = np.flatnonzero(np.repeat(amount, CELL_PX) > 0)
    if not len(rows):
        return
    band = light[rows[0] : rows[-1] + 1]
    share = np.repeat(amount, CELL_PX)[rows[0] : rows[-1] + 1, None, None]
    band += share * (cv2.GaussianBlur(band, (0, 0), 4.5) - band)


def _ink(light: np.ndarray, ink: np.ndarray, rgb: tuple[float, float, float]) -> None:
    """Multiply the light by the transmittance of the ink, in place."""
    if ink.any():
        full = cv2.resize(ink, light.shape[1::-1], interpolation=cv2.INTER_LINEAR)[..., None]
        light *= 1 - full * (1 - np.array(rgb, np.float32))
