"""Image quality of tiles: sharpness, saturation and optical density."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stainssl.slides.tissue import optical_density_log10

# µm/px at which all values are measured, whatever the slide's pixel size: blur is detected as well
# as at 1 µm/px, and most pyramids have a level for it.
SHARPNESS_MPP = 2.0
MIN_VARIANCE = 4.0  # grey levels²: a tile with less is flat, and has no sharpness


@dataclass(frozen=True)
class TileQuality:
    """Quality of n tiles, (n,) float32 each.

    Attributes:
        sharpness: variance of the Laplacian divided by the variance of the grey levels, at
            2 µm/px; no unit. 0 is a linear ramp, 20 white noise; NaN for a flat tile.
        saturation: mean HSV saturation, 0–1.
        od: mean over pixels and channels of the base-10 optical density against white (255).
    """

    sharpness: np.ndarray
    saturation: np.ndarray
    od: np.ndarray


def measure_quality(image: np.ndarray, boxes: np.ndarray) -> TileQuality:
    """Measure the quality of many tiles of one image.

    Sharpness is the variance of the Laplacian of Pech-Pacheco et al. (Diatom autofocusing in
    brightfield microscopy, ICPR 2000), divided by the variance of the tile, so that it does not
    depend on contrast and stain strength.

    Args:
        image: (h, w, 3) uint8 RGB at `SHARPNESS_MPP`.
        boxes: (n, 4) float, x0, y0, x1, y1 of each tile in px of the image.

    Returns:
        Quality of the tiles, in the order of `boxes`. It does not depend on the other tiles.
    """
    height, width = image.shape[:2]
    whole = np.clip(np.rint(boxes), 0, [width, height, width, height]).astype(np.int64)
    x0, y0, x1, y1 = whole.T
    rows, row = np.unique(whole[:, [1, 3]], axis=0, return_inverse=True)
    # One row of tiles at a time, so that intermediate arrays fit in the cache.
    columns = np.zeros((len(rows), 6, width + 1))
    for out, (top, bottom) in zip(columns, rows.tolist(), strict=True):
        if top < bottom:
            out[:, 1:] = _column_sums(image, top, bottom)
    upto = np.cumsum(columns, axis=2)
    row = row.reshape(-1)
    area = np.maximum((x1 - x0) * (y1 - y0), 1)
    means = ((upto[row, :, x1] - upto[row, :, x0]) / area[:, None]).T
    grey, grey2, edges, edges2, saturation, density = means
    variance = grey2 - grey**2
    flat = variance < MIN_VARIANCE
    sharpness = np.where(flat, np.nan, (edges2 - edges**2) / np.where(flat, 1, variance))
    return TileQuality(*(v.astype(np.float32) for v in (sharpness, saturation / 255, density)))


def _column_sums(image: np.ndarray, top: int, bottom: int) -> np.ndarray:
    """Sums over some rows of an image, (6, w) float64, one value per column.

    Of the grey levels and their squares, of their Laplacian and its squares, of HSV saturation
    (0–255), and of the optical density (mean over channels).
    """
    rim = max(0, top - 1)  # the Laplacian needs a row above and below
    grey = cv2.cvtColor(image[rim : bottom + 1], cv2.COLOR_RGB2GRAY)
    edges = cv2.Laplacian(grey, cv2.CV_32F, borderType=cv2.BORDER_REFLECT_101)
    grey, edges = (values[top - rim : bottom - rim] for values in (grey, edges))
    saturated = cv2.extractChannel(cv2.cvtColor(image[top:bottom], cv2.COLOR_RGB2HSV), 1)
    return np.stack([
        _sums(grey), _sums(grey, cv2.REDUCE_SUM2), _sums(edges), _sums(edges, cv2.REDUCE_SUM2),
        _sums(saturated), _sums(optical_density_log10(image[top:bottom])).mean(axis=1),
    ])  # fmt: skip


def _sums(values: np.ndarray, way: int = cv2.REDUCE_SUM) -> np.ndarray:
    """Sums of the columns, float64: (w,) of (h, w), (w, 3) of (h, w, 3); exact for integers."""
    flat = values.reshape(len(values), -1)  # OpenCV takes longer over several channels
    return cv2.reduce(flat, 0, way, dtype=cv2.CV_64F).reshape(values.shape[1:])
