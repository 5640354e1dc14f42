"""Figures of picture quality per tile: saturation, optical density, sharpness."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stainssl.slides.tissue import optical_density_log10

SHARPNESS_MPP = 2.0  # µm/px at which all figures are taken, whatever the slide's own scale: blur
# is told as well there as at 1 µm/px, and most pyramids have a level for it
MIN_VARIANCE = 4.0  # grey levels²: below it there is nothing to be sharp


@dataclass(frozen=True)
class Figures:
    """One value a tile, (n,) float32 each.

    Attributes:
        sharpness: variance of the Laplacian over the variance of the grey levels, at 2 µm/px;
            no unit. 0 is a ramp, 20 is white noise; NaN where the tile is flat.
        saturation: mean HSV saturation, 0–1.
        od: mean over pixels and channels of the base-10 optical density against white (255).
    """

    sharpness: np.ndarray
    saturation: np.ndarray
    od: np.ndarray


def _box_means(values: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(n,) float64 means of `values` (h, w), uint8 or float32, over boxes as `_means_of` has."""
    return _means_of(cv2.integral(values, sdepth=cv2.CV_64F), boxes)


def _box_variances(values: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(n,) float64 variances of `values` (h, w) float32 over boxes as `_means_of` has."""
    sums, squares = cv2.integral2(values, sdepth=cv2.CV_64F, sqdepth=cv2.CV_64F)
    return _means_of(squares, boxes) - _means_of(sums, boxes) ** 2


def _means_of(sums: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    # Of an integral image (h + 1, w + 1), over integer boxes (n, 4): x0, y0, x1, y1.
    x0, y0, x1, y1 = boxes.T
    total = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return total / np.maximum((x1 - x0) * (y1 - y0), 1)


def _sharpness(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    edges = cv2.Laplacian(grey, cv2.CV_32F, borderType=cv2.BORDER_REFLECT_101)
    grey -= grey.mean()  # keeps the squares small, hence exact
    of_grey, of_edges = _box_variances(grey, boxes), _box_variances(edges, boxes)
    flat = of_grey < MIN_VARIANCE
    return np.where(flat, np.nan, of_edges / np.where(flat, 1, of_grey))


def figures(image: np.ndarray, boxes: np.ndarray) -> Figures:
    """The figures of many tiles of one picture at once.

    Sharpness is the variance of the Laplacian of Pech-Pacheco et al. (Diatom autofocusing in
    brightfield microscopy, ICPR 2000) divided by the variance of the picture, so that contrast
    and stain strength cancel.

    Args:
        image: (h, w, 3) uint8 RGB at `SHARPNESS_MPP`.
        boxes: (n, 4) float, x0, y0, x1, y1 of each tile in the image's px.

    Returns:
        The figures, in the order of `boxes`.
    """
    height, width = image.shape[:2]
    limits = np.array([width, height, width, height])
    whole = np.clip(np.rint(boxes), 0, limits).astype(np.int64)
    saturation = cv2.extractChannel(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), 1)
    return Figures(
        _sharpness(image, whole).astype(np.float32),
        (_box_means(saturation, whole) / 255).astype(np.float32),
        _box_means(_mean_density(image), whole).astype(np.float32),
    )


def _mean_density(image: np.ndarray) -> np.ndarray:
    return cv2.transform(optical_density_log10(image), np.full((1, 3), 1 / 3))
