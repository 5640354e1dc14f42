"""Geometry of a synthetic slide before rendering: regions, holes, glands and nuclei."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit
from scipy.spatial import cKDTree

from stainssl.demo.plan import LYMPHOCYTES_IN_TUMOUR, SlidePlan

MPP = 0.5
CELL_PX = 8  # regions and fields have one value per cell of 4 µm
BLOCK_CELLS = 8
GRID_PX = 16
HARMONICS = 4

GLASS, STROMA, FAT, BENIGN, LYMPHOID, TUMOUR = range(6)
SPINDLE, LYMPHOCYTE, EPITHELIUM, TUMOUR_CELL = range(4)

# Share of the nuclear area of each kind (columns) by region (rows GLASS..TUMOUR). In tumour the
# share of lymphocytes depends on the label `response`.
SHARES = np.array(
    [
        [0.0, 0.0, 0.0, 0.0],
        [0.6, 0.4, 0.0, 0.0],
        [0.04, 0.0, 0.0, 0.0],
        [0.65, 0.35, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0],
        [0.05, 0.0, 0.0, 0.95],
    ]
)
# Nuclear area in glands and between them, relative to the same region without glands.
CROWDING_OF_GLANDS = (1.25, 0.85)
# Relative chromatin of each kind; its nuclear area is divided by it, so that the mean is the same.
DARKNESS = np.array([1.0, 1.05, 1.02, 0.97])
# Geometric mean of the radius (px), SD of its ln, minimum and maximum aspect ratio, SD of the
# outline's harmonics, and minimum distance between nuclei (share of the sum of their radii).
SHAPES = {
    SPINDLE: (5.9, 0.12, 2.6, 4.6, 0.030, 0.80),
    LYMPHOCYTE: (6.3, 0.07, 1.0, 1.2, 0.025, 0.95),
    EPITHELIUM: (7.3, 0.09, 1.15, 1.6, 0.030, 0.85),
    TUMOUR_CELL: (10.6, 0.18, 1.0, 1.7, 0.075, 0.80),
}
HER2_GROWTH = 1.12
HOLE_SHARE = 0.07  # share of the area: clefts, vessels, lumina
CANDIDATES = 5.0  # candidates per wanted nucleus


@dataclass(frozen=True)
class Scene:
    """Geometry of one slide. Lengths are in level-0 px; fields are (n, n) per cell of 8 px.

    Attributes:
        side_px: side of the slide.
        region: (n, n) uint8, GLASS to TUMOUR.
        septum: (n, n) bool, fibrous septa; they count inside tumour only.
        gland: (n, n) bool, wall or lumen of a gland.
        coverage, chromatin, eosin, thickness: (n, n) float32, independent of the region.
        fibre: (n, n) float32, potential whose level lines are the fibres.
        holes: (k, 6) float32: x, y, semi-axes, angle (rad), phase (rad) of the outline.
        glands: (g, 4) float32: x, y, radius, radius of the lumen.
        kind: (m,) uint8, kind of each nucleus, SPINDLE to TUMOUR_CELL.
        x, y, long, short, angle: (m,) float32, centre, semi-axes and direction (rad).
        outline: (m, 4, 2) float32, amplitude and phase of the outline's harmonics 2 to 5.
    """

    side_px: int
    region: np.ndarray
    septum: np.ndarray
    gland: np.ndarray
    coverage: np.ndarray
    chromatin: np.ndarray
    eosin: np.ndarray
    thickness: np.ndarray
    fibre: np.ndarray
    holes: np.ndarray
    glands: np.ndarray
    kind: np.ndarray
    x: np.ndarray
    y: np.ndarray
    long: np.ndarray
    short: np.ndarray
    angle: np.ndarray
    outline: np.ndarray


def smooth_noise(rng: np.random.Generator, n: int, sigma_cells: float) -> np.ndarray:
    """(n, n) float32 noise of mean 0 and variance 1, smoothed with `sigma_cells`."""
    frequency = np.fft.fftfreq(2 * n)[:, None] ** 2 + np.fft.rfftfreq(2 * n)[None, :] ** 2
    spectrum = np.fft.rfft2(rng.standard_normal((2 * n, 2 * n)))
    spectrum *= np.exp(-2 * (np.pi * sigma_cells) ** 2 * frequency)
    field = np.fft.irfft2(spectrum, s=(2 * n, 2 * n))
    return (field / field.std()).astype(np.float32)[:n, :n]


def _highest(field: np.ndarray, within: np.ndarray, share: float) -> np.ndarray:
    """Mask of the `share` of `within` where `field` is highest."""
    if share <= 0 or not within.any():
        return np.zeros_like(within)
    return within & (field >= np.quantile(field[within], 1.0 - min(share, 1.0)))


def _tissue(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, n) bool tissue mask: one irregular piece, sometimes torn."""
    axis = np.linspace(-1, 1, n, dtype=np.float32)
    radius = (np.abs(axis[:, None]) ** 3 + np.abs(axis[None, :]) ** 3) ** (1 / 3)
    field = 0.30 * smooth_noise(rng, n, n / 8) + 0.06 * smooth_noise(rng, n, 5) - radius
    inside = radius < 0.97
    return _highest(field, inside, rng.uniform(0.58, 0.72))


def _regions(rng: np.random.Generator, n: int, tumour_share: float) -> np.ndarray:
    """(n, n) uint8 regions; tumour is drawn before the other regions."""
    tissue = _tissue(rng, n)
    region = np.where(tissue, STROMA, GLASS).astype(np.uint8)
    rough = 0.12 * smooth_noise(rng, n, 4)
    tumour = _highest(smooth_noise(rng, n, 26) + rough, tissue, tumour_share)
    region[tumour] = TUMOUR
    for name, sigma_cells, share in ((BENIGN, 24, 0.45), (FAT, 14, 0.12), (LYMPHOID, 16, 0.30)):
        rest = region == STROMA
        region[_highest(smooth_noise(rng, n, sigma_cells) + rough, rest, share)] = name
    return region


def _points_in(rng: np.random.Generator, rate: np.ndarray) -> np.ndarray:
    """(m, 2) float32 x, y in px of Poisson points with `rate` (n, n) per cell, in random order."""
    count = rng.poisson(rate)
    row, column = np.nonzero(count)
    times = count[row, column]
    cell = np.stack([np.repeat(column, times), np.repeat(row, times)], axis=1)
    points = (cell + rng.uniform(0, 1, cell.shape)) * CELL_PX
    return rng.permutation(points).astype(np.float32)


def _glands(rng: np.random.Generator, region: np.ndarray) -> np.ndarray:
    """(g, 4) float32 x, y, radius, radius of the lumen of glands that do not touch."""
    centres = _points_in(rng, 0.03 * (region == BENIGN))
    radius = rng.uniform(34, 70, len(centres)).astype(np.float32)
    kept: list[int] = []
    for i, (centre, r) in enumerate(zip(centres, radius, strict=True)):
        gap = np.hypot(*(centres[kept] - centre).T) - radius[kept] - r
        if not kept or gap.min() > 6:
            kept.append(i)
    lumen = radius[kept] * rng.uniform(0.25, 0.5, len(kept))
    return np.column_stack([centres[kept], radius[kept], lumen]).astype(np.float32)


def _gland_map(n: int, glands: np.ndarray) -> np.ndarray:
    """(n, n) bool: cells in the wall or lumen of a gland."""
    canvas = np.zeros((n, n), np.uint8)
    for x, y, radius, _ in glands:
        centre = (int(x / CELL_PX * 16 - 8), int(y / CELL_PX * 16 - 8))
        cv2.circle(canvas, centre, int((radius + 2) / CELL_PX * 16), 1, -1, shift=4)
    return canvas.astype(bool)


def _holes(rng: np.random.Generator, region: np.ndarray, glands: np.ndarray) -> np.ndarray:
    """(k, 6) float32: holes in stroma, lymphoid tissue and tumour, and lumina of glands."""
    solid = np.isin(region, (STROMA, LYMPHOID, TUMOUR))
    long = np.exp(rng.normal(np.log(20), 0.35, 20000))
    short = long * rng.uniform(0.35, 0.8, 20000)
    mean_area = float(np.mean(np.pi * long * short))
    centres = _points_in(rng, HOLE_SHARE * CELL_PX**2 / mean_area * solid)
    k = len(centres)
    free = np.column_stack(
        [centres, long[:k], short[:k], rng.uniform(0, np.pi, k), rng.uniform(0, 6.28, k)]
    )
    g = len(glands)
    lumina = np.column_stack(
        [glands[:, :2], glands[:, 3], glands[:, 3] * rng.uniform(0.6, 1.0, g),
         rng.uniform(0, np.pi, g), rng.uniform(0, 6.28, g)]
    )  # fmt: skip
    return np.concatenate([free, lumina]).astype(np.float32)


@njit(cache=True)
def stamp_holes(solid: np.ndarray, holes: np.ndarray, scale: float) -> None:
    """Lower `solid` (h, w) float32 from 1 to 0 in holes, in place; `scale`: level-0 px per px."""
    h, w = solid.shape
    for i in range(holes.shape[0]):
        x, y = holes[i, 0] / scale, holes[i, 1] / scale
        long, short = holes[i, 2] / scale, holes[i, 3] / scale
        c, s = np.cos(holes[i, 4]), np.sin(holes[i, 4])
        reach = 1.4 * long + 2
        for row in range(max(0, int(y - reach)), min(h, int(y + reach) + 1)):
            for column in range(max(0, int(x - reach)), min(w, int(x + reach) + 1)):
                dx, dy = column + 0.5 - x, row + 0.5 - y
                u, v = (c * dx + s * dy) / long, (c * dy - s * dx) / short
                rho = np.sqrt(u * u + v * v) + 1e-6
                cosine = u / rho
                third = cosine * (4 * cosine * cosine - 3)
                outline = (
                    1 + 0.12 * np.cos(holes[i, 5]) * third + 0.12 * np.sin(holes[i, 5]) * (v / rho)
                )
                level = 0.5 + (rho - outline) * short * scale / 3.0
                if level < solid[row, column]:
                    solid[row, column] = max(level, 0.0)


@njit(cache=True)
def _accept(
    x: np.ndarray, y: np.ndarray, kind: np.ndarray, radius: np.ndarray, nearest: np.ndarray,
    spare: np.ndarray, budget: np.ndarray, block_px: int, head: np.ndarray, grid_px: int,
) -> np.ndarray:  # fmt: skip
    """(m,) bool: accepted candidates, in order: their block has area left and none is too near."""
    count, cells = len(x), head.shape[0]
    taken = np.zeros(count, np.bool_)
    following = np.full(count, -1, np.int64)
    for i in range(count):
        row, column = int(y[i]) // block_px, int(x[i]) // block_px
        area = np.pi * radius[i] * radius[i]
        if budget[kind[i], row, column] < area * spare[i]:
            continue
        gy, gx = int(y[i]) // grid_px, int(x[i]) // grid_px
        free = True
        for cy in range(max(0, gy - 2), min(cells, gy + 3)):
            for cx in range(max(0, gx - 2), min(cells, gx + 3)):
                j = head[cy, cx]
                while j >= 0 and free:
                    near = min(nearest[i], nearest[j]) * (radius[i] + radius[j])
                    if (x[i] - x[j]) ** 2 + (y[i] - y[j]) ** 2 < near * near:
                        free = False
                    j = following[j]
        if free:
            taken[i] = True
            budget[kind[i], row, column] -= area
            following[i] = head[gy, gx]
            head[gy, gx] = i
    return taken


def _shapes(
    rng: np.random.Generator, kind: int, points: np.ndarray, angle: np.ndarray, growth: float
) -> dict[str, np.ndarray]:
    """Nuclei of one kind at `points` (m, 2), with random semi-axes and outlines."""
    mean, spread, aspect_from, aspect_to, irregular, _ = SHAPES[kind]
    count = len(points)
    radius = mean * growth * np.exp(rng.normal(0, spread, count))
    stretch = np.sqrt(rng.uniform(aspect_from, aspect_to, count))
    amplitude = np.abs(rng.normal(0, irregular, (count, HARMONICS)))
    amplitude *= 2.0 / np.arange(2, 2 + HARMONICS)
    phase = rng.uniform(0, 2 * np.pi, (count, HARMONICS))
    columns = {
        "x": points[:, 0], "y": points[:, 1], "long": radius * stretch, "short": radius / stretch,
        "angle": angle, "outline": np.stack([amplitude, phase], axis=-1),
    }  # fmt: skip
    kinds = np.full(count, kind, np.uint8)
    return {"kind": kinds, **{k: v.astype(np.float32) for k, v in columns.items()}}


def _along_fibres(fibre: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(m,) direction (rad) of the level line of `fibre` at each point."""
    dy, dx = np.gradient(fibre)
    cell = (points // CELL_PX).astype(int)
    return np.arctan2(dx[cell[:, 1], cell[:, 0]], -dy[cell[:, 1], cell[:, 0]])


def _in_gland_walls(
    rng: np.random.Generator, glands: np.ndarray, side_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates for epithelium: (m, 2) points in walls of glands, and their (m,) directions."""
    count = (0.12 * (glands[:, 2] ** 2 - glands[:, 3] ** 2)).astype(int)
    gland = rng.permutation(np.repeat(np.arange(len(glands)), count))
    angle = rng.uniform(0, 2 * np.pi, len(gland))
    inner, outer = glands[gland, 3] + 7, glands[gland, 2] - 4
    distance = inner + (outer - inner) * np.sqrt(rng.uniform(0, 1, len(gland)))
    points = glands[gland, :2] + distance[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    inside = np.all((points >= 0) & (points < side_px), axis=1)
    return points[inside].astype(np.float32), angle[inside]


def _outside_gland_walls(points: np.ndarray, glands: np.ndarray) -> np.ndarray:
    """(m,) bool: points outside all glands."""
    if not len(glands):
        return np.ones(len(points), bool)
    distance, index = cKDTree(glands[:, :2]).query(points, k=min(3, len(glands)))
    distance, index = distance.reshape(len(points), -1), index.reshape(len(points), -1)
    return np.all(distance > glands[index, 2] - 4, axis=1)


def _wanted(slide: SlidePlan, fields: dict[str, np.ndarray]) -> np.ndarray:
    """(4, n, n) wanted nuclear area per cell in px², by kind."""
    region, gland = fields["region"], fields["gland"]
    shares = SHARES.copy()
    lymphocytes = LYMPHOCYTES_IN_TUMOUR[slide.response]
    shares[TUMOUR, LYMPHOCYTE] = lymphocytes
    shares[TUMOUR, TUMOUR_CELL] -= lymphocytes
    wanted = np.moveaxis(shares[region], -1, 0).copy()
    wanted[:, gland] = (np.arange(4) == EPITHELIUM)[:, None] * CROWDING_OF_GLANDS[0]
    wanted[:, (region == BENIGN) & ~gland] *= CROWDING_OF_GLANDS[1]
    area = fields["coverage"] / fields["chromatin"] * CELL_PX**2
    return wanted * area / DARKNESS[:, None, None]


def _candidates(
    rng: np.random.Generator, slide: SlidePlan, wanted: np.ndarray, fields: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Candidate nuclei, the largest kinds first, several times as many as wanted."""
    side_px = wanted.shape[1] * CELL_PX
    nests = ~fields["septum"] | (fields["region"] != TUMOUR)
    parts = []
    for kind in (TUMOUR_CELL, EPITHELIUM, LYMPHOCYTE, SPINDLE):
        growth = HER2_GROWTH if kind == TUMOUR_CELL and slide.her2 else 1.0
        if kind == EPITHELIUM:
            points, angle = _in_gland_walls(rng, fields["glands"], side_px)
        else:
            area = np.pi * (SHAPES[kind][0] * growth) ** 2
            rate = CANDIDATES * wanted[kind] / area
            points = _points_in(rng, rate * nests if kind == TUMOUR_CELL else rate)
            angle = rng.uniform(0, 2 * np.pi, len(points))
        if kind in (LYMPHOCYTE, SPINDLE):
            outside = _outside_gland_walls(points, fields["glands"])
            points, angle = points[outside], angle[outside]
        if kind == SPINDLE:
            angle = _along_fibres(fields["fibre"], points) + rng.normal(0, 0.2, len(points))
        parts.append(_shapes(rng, kind, points, angle, growth))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _nuclei(
    rng: np.random.Generator, slide: SlidePlan, fields: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Nuclei that give the wanted coverage, and avoid holes and each other."""
    wanted = _wanted(slide, fields)
    new = _candidates(rng, slide, wanted, fields)
    n = wanted.shape[1]
    solid = np.ones((2 * n, 2 * n), np.float32)
    stamp_holes(solid, fields["holes"], CELL_PX / 2)
    place = (new["y"] // (CELL_PX // 2)).astype(int), (new["x"] // (CELL_PX // 2)).astype(int)
    new = {key: value[solid[place] > 0.5] for key, value in new.items()}
    blocks = -(-n // BLOCK_CELLS)
    padded = np.zeros((4, blocks * BLOCK_CELLS, blocks * BLOCK_CELLS))
    padded[:, :n, :n] = wanted
    budget = padded.reshape(4, blocks, BLOCK_CELLS, blocks, BLOCK_CELLS).sum(axis=(2, 4))
    nearest = np.array([SHAPES[kind][5] for kind in range(4)])[new["kind"]]
    head = np.full((n * CELL_PX // GRID_PX + 1,) * 2, -1, np.int64)
    taken = _accept(
        new["x"], new["y"], new["kind"], np.sqrt(new["long"] * new["short"]), nearest,
        rng.uniform(0, 1, len(nearest)), budget, BLOCK_CELLS * CELL_PX, head, GRID_PX,
    )  # fmt: skip
    return {key: value[taken] for key, value in new.items()}


def _fields(rng: np.random.Generator, n: int, region: np.ndarray) -> dict[str, np.ndarray]:
    """Fields that are independent of the region, and geometry that depends on it."""
    coverage = np.exp(np.log(0.24) + rng.normal(0, 0.10) + 0.28 * smooth_noise(rng, n, 11))
    eosin = np.exp(rng.normal(0, 0.08) + 0.18 * smooth_noise(rng, n, 9))
    glands = _glands(rng, region)
    return {
        "region": region,
        "septum": np.abs(smooth_noise(rng, n, 6)) < 0.22,
        "gland": _gland_map(n, glands),
        "coverage": np.clip(coverage, 0.08, 0.42).astype(np.float32),
        "chromatin": np.exp(0.15 * smooth_noise(rng, n, 10)).astype(np.float32),
        "eosin": eosin.astype(np.float32),
        "thickness": np.exp(0.12 * smooth_noise(rng, n, 16)).astype(np.float32),
        "fibre": smooth_noise(rng, n, 18),
        "glands": glands,
        "holes": _holes(rng, region, glands),
    }


def draw_scene(slide: SlidePlan, seed: int, side_px: int = 3072) -> Scene:
    """Draw the geometry of one slide, which depends only on the slide, the seed and the side.

    Raises:
        ValueError: `side_px` is not a positive multiple of 256.
    """
    if side_px <= 0 or side_px % 256:
        raise ValueError(f"side_px is {side_px}; it must be a positive multiple of 256")
    rng = slide.rng(seed, "scene")
    n = side_px // CELL_PX
    if slide.fault == "empty":
        region = np.full((n, n), GLASS, np.uint8)
    else:
        region = _regions(rng, n, slide.tumour_share)
    fields = _fields(rng, n, region)
    return Scene(side_px=side_px, **fields, **_nuclei(rng, slide, fields))
