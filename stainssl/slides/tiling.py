"""Tiling of a slide: the grid, the tissue and quality of each tile, and which tiles are kept.

Positions are in level-0 px; areas are measured in px of the tissue mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from stainssl.errors import SlideError, Status
from stainssl.runtime.parallel import parallel_map
from stainssl.slides.quality import SHARPNESS_MPP, TileQuality, measure_quality
from stainssl.slides.scale import READ_PX, level_for, read_rectangle
from stainssl.slides.slide import Slide
from stainssl.slides.tissue import TissueMap

BACKGROUND = "background"  # grid positions without any tissue: counted, but not in the table
REASONS = ("pen", "tissue", "blur", "pale", "region")
"""Why a tile is discarded, the first that applies: more ink, less tissue, lower sharpness or lower
saturation than the limits, or outside the annotated regions."""
REASON_WORDS = {
    "pen": "ink", "tissue": "too little tissue", "blur": "out of focus", "pale": "pale",
    "region": "outside of the regions",
}  # fmt: skip
COLUMNS = (
    "tile", "x", "y", "side", "tissue", "sharpness", "pen", "saturation", "od", "kept", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class TileGrid:
    """Squares of one size at a regular stride, completely inside a slide's bounds.

    Attributes:
        x_level0_px: (columns,) int64, left edges.
        y_level0_px: (rows,) int64, top edges.
        side_level0_px: side of a square, not always an integer.
    """

    x_level0_px: np.ndarray
    y_level0_px: np.ndarray
    side_level0_px: float

    def __len__(self) -> int:
        return len(self.x_level0_px) * len(self.y_level0_px)

    def corners(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y of every tile, (n,) int64 each, row by row; a tile's number is its index."""
        y, x = np.meshgrid(self.y_level0_px, self.x_level0_px, indexing="ij")
        return x.ravel(), y.ravel()


@dataclass(frozen=True)
class TileLimits:
    """Criteria for keeping a tile; None is no limit.

    Attributes:
        min_tissue: least share of the tile's area that is tissue.
        max_pen: largest share of the tile's area that is ink.
        min_sharpness: see `quality.TileQuality`; a flat tile has no sharpness, and is not
            discarded.
        min_saturation: least mean HSV saturation, 0–1.
    """

    min_tissue: float = 0.5
    max_pen: float | None = None
    min_sharpness: float | None = None
    min_saturation: float | None = None


def _starts(length_px: int, side_px: float, stride_px: float) -> np.ndarray:
    count = math.floor((length_px - side_px) / stride_px + 1e-6) + 1 if side_px <= length_px else 0
    return np.floor(np.arange(count) * stride_px + 1e-6).astype(np.int64)


def grid(
    bounds_level0_px: tuple[int, int, int, int],
    slide_mpp: float,
    mpp: float,
    size_px: int,
    overlap_px: int = 0,
) -> TileGrid:
    """Create the grid of tiles of `size_px` at `mpp` that lie completely inside the bounds.

    Positions are multiples of the exact stride, rounded down to whole level-0 px, so that rounding
    errors do not add up; the side is exact.

    Args:
        bounds_level0_px: x, y, width, height.
        slide_mpp: µm/px of level 0.
        mpp: µm/px of the tiles.
        size_px: side of a tile at `mpp`.
        overlap_px: overlap of neighbouring tiles at `mpp`, less than `size_px`.

    Raises:
        SlideError: `too-small` if no tile fits.
        ValueError: `size_px` is not positive, or `overlap_px` is negative or not below it.
    """
    if size_px < 1 or not 0 <= overlap_px < size_px:
        raise ValueError(
            f"size {size_px} px must be positive and above the overlap {overlap_px} px"
        )
    x, y, width, height = bounds_level0_px
    side = size_px * mpp / slide_mpp
    stride = (size_px - overlap_px) * mpp / slide_mpp
    found = TileGrid(x + _starts(width, side, stride), y + _starts(height, side, stride), side)
    if not len(found):
        raise SlideError(
            Status.TOO_SMALL,
            f"The slide has {width}×{height} px, a tile of {size_px} px at {mpp:g} µm/px needs "
            f"{math.ceil(side)}.",
        )
    return found


def area_shares(mask: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Share of each box that is covered by a mask, exact to fractions of a px.

    Args:
        mask: (h, w) bool.
        boxes: (n, 4) float, x0, y0, x1, y1 in px of the mask; the outside counts as not covered.

    Returns:
        (n,) float64, 0–1.
    """
    height, width = mask.shape
    if not mask.any():
        return np.zeros(len(boxes))
    sums = cv2.integral(mask.view(np.uint8), sdepth=cv2.CV_32S)  # exact below 2^31 px

    def upto(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        left, top = np.minimum(x.astype(int), width - 1), np.minimum(y.astype(int), height - 1)
        right, down = x - left, y - top
        upper = sums[top, left] * (1 - right) + sums[top, left + 1] * right
        lower = sums[top + 1, left] * (1 - right) + sums[top + 1, left + 1] * right
        return upper * (1 - down) + lower * down

    x0, y0, x1, y1 = boxes.T
    covered = upto(x1, y1) - upto(x0, y1) - upto(x1, y0) + upto(x0, y0)
    return np.clip(covered / ((x1 - x0) * (y1 - y0)), 0, 1)


def _blocks(x: np.ndarray, y: np.ndarray, block_px: float) -> Iterator[np.ndarray]:
    """Yield the indices of the tiles whose corners are in one square of `block_px` px."""
    if not len(x):
        return
    key = np.column_stack([y // block_px, x // block_px]).astype(np.int64)
    block = np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(block, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(block[order])) + 1)


def measure_tiles(slide: Slide, tiles: pd.DataFrame, slide_mpp: float) -> TileQuality:
    """Measure the quality of tiles, reading large regions so that little is decoded twice.

    Args:
        slide: open slide; `slide.readers` regions are measured in parallel.
        tiles: table with the columns `x`, `y`, `side` in level-0 px.
        slide_mpp: µm/px of level 0.

    Returns:
        Quality of the tiles, in the order of `tiles`.

    Raises:
        SlideError, OSError: as `Slide.read_region`.
    """
    ratio = max(SHARPNESS_MPP / slide_mpp, 1.0)  # a coarser slide is measured at its own mpp
    block_level0_px = READ_PX * slide.downsamples[level_for(slide.downsamples, ratio)]
    x, y, side = (tiles[name].to_numpy(float) for name in ("x", "y", "side"))
    found = np.full((len(tiles), 3), np.nan, np.float32)

    def work(rows: np.ndarray) -> None:
        # A common pixel grid and a margin of one px make the result independent of the blocks.
        left = max(0, math.floor(x[rows].min() / ratio) - 1) * ratio
        top = max(0, math.floor(y[rows].min() / ratio) - 1) * ratio
        right, bottom = (x[rows] + side[rows]).max(), (y[rows] + side[rows]).max()
        size_px = math.ceil((right - left) / ratio) + 1, math.ceil((bottom - top) / ratio) + 1
        size_level0_px = size_px[0] * ratio, size_px[1] * ratio
        image = read_rectangle(slide, left, top, size_level0_px, size_px)
        x0, y0, side_px = (x[rows] - left) / ratio, (y[rows] - top) / ratio, side[rows] / ratio
        one = measure_quality(image, np.column_stack([x0, y0, x0 + side_px, y0 + side_px]))
        found[rows] = np.column_stack([one.sharpness, one.saturation, one.od])

    for _ in parallel_map(work, _blocks(x, y, block_level0_px), slide.readers):
        pass
    return TileQuality(*found.T)


def reasons(tiles: pd.DataFrame, limits: TileLimits) -> np.ndarray:
    """(n,) reason why each tile is discarded, of `REASONS`; "" for tiles that are kept."""
    none = pd.Series(False, tiles.index)
    tests: Mapping[str, pd.Series] = {
        "pen": none if limits.max_pen is None else tiles["pen"] > limits.max_pen,
        "tissue": tiles["tissue"] < limits.min_tissue,
        "blur": none if limits.min_sharpness is None else tiles["sharpness"] < limits.min_sharpness,
        "pale": none
        if limits.min_saturation is None
        else tiles["saturation"] < limits.min_saturation,
        "region": none,  # set by `annotations.discard_outside`
    }
    return np.select([tests[name] for name in REASONS], list(REASONS), default="")


def candidate_tiles(
    slide: Slide, slide_mpp: float, squares: TileGrid, tissue: TissueMap
) -> pd.DataFrame:
    """List the squares of a grid that contain any tissue, without reading pixels.

    Returns:
        The columns `tile`, `x`, `y`, `side`, `tissue`, `pen` of `tile_table`, in grid order.
    """
    x, y = squares.corners()
    left, top = slide.bounds_level0_px[:2]
    corner = np.column_stack([x - left, y - top]) * slide_mpp / tissue.mpp
    boxes = np.hstack([corner, corner + squares.side_level0_px * slide_mpp / tissue.mpp])
    tiles = pd.DataFrame({"tile": np.arange(len(x)), "x": x, "y": y})
    tiles["side"] = squares.side_level0_px
    tiles["tissue"] = area_shares(tissue.tissue, boxes)
    has_tissue = (tiles["tissue"] > 1e-9).to_numpy()
    tiles = tiles[has_tissue].reset_index(drop=True)
    return tiles.assign(pen=area_shares(tissue.ink, boxes[has_tissue]))


def tile_table(
    slide: Slide, slide_mpp: float, squares: TileGrid, tissue: TissueMap, limits: TileLimits
) -> pd.DataFrame:
    """List the tiles of a slide that contain any tissue, whether they are kept or not.

    Args:
        slide: open slide.
        slide_mpp: µm/px of level 0.
        squares: grid of tiles.
        tissue: tissue map, with its origin at the corner of the slide's bounds.
        limits: criteria for keeping a tile.

    Returns:
        One row per tile, in grid order: `tile` (number in the grid), `x`, `y`, `side` (level-0
        px), `tissue`, `pen` (shares of its area), `sharpness`, `saturation`, `od` (see
        `quality.TileQuality`), `kept`, `reason`.

    Raises:
        SlideError, OSError: as `Slide.read_region`.
    """
    tiles = candidate_tiles(slide, slide_mpp, squares, tissue)
    measured = measure_tiles(slide, tiles, slide_mpp)
    tiles = tiles.assign(sharpness=measured.sharpness, saturation=measured.saturation)
    tiles = tiles.assign(od=measured.od, reason=reasons(tiles, limits))
    return tiles.assign(kept=tiles["reason"] == "")[list(COLUMNS)]


def counts(tiles: pd.DataFrame, positions: int) -> dict[str, int]:
    """Count the kept tiles, the discarded tiles by reason, and grid positions without tissue.

    Args:
        tiles: result of `tile_table`.
        positions: number of positions in the grid.

    Returns:
        Counts of `kept`, each of `REASONS`, and `background`, which add up to `positions`.
    """
    by_reason = tiles["reason"].value_counts()
    found = {"kept": int(tiles["kept"].sum())}
    found |= {reason: int(by_reason.get(reason, 0)) for reason in REASONS}
    return {**found, BACKGROUND: positions - len(tiles)}
