"""Where a file of outlines counts from: the slide's own corner, or that of its scanned bounds.

Slides of SCN, MRXS and BIF have bounds inside a larger, mostly empty picture. Here, as in
OpenSlide, everything is in level-0 px of the whole picture. QuPath crops to the bounds, and its
coordinates count from their corner; ASAP, ImageScope, CLAM and TRIDENT count as OpenSlide does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from shapely.affinity import translate

from stainssl.slides.annotation_files import Areas

Frame = Literal["auto", "bounds", "slide"]
OF_QUPATH = (".geojson", ".json")


def origin_of(
    path: Path, frame: Frame, bounds_level0_px: tuple[int, int, int, int]
) -> tuple[int, int]:
    """The level-0 px at which a file of outlines has its 0, 0.

    Args:
        path: the file; GeoJSON is taken for QuPath's where the frame is `auto`.
        frame: `bounds`, `slide`, or `auto`.
        bounds_level0_px: x, y, width, height of the slide's bounds.
    """
    if frame == "auto":
        frame = "bounds" if path.suffix.lower() in OF_QUPATH else "slide"
    return bounds_level0_px[:2] if frame == "bounds" else (0, 0)


def in_slide(areas: Areas, origin_level0_px: tuple[int, int]) -> Areas:
    """Areas that count from an origin, in level-0 px of the whole slide."""
    x, y = origin_level0_px
    if (x, y) == (0, 0):
        return areas
    return [(name, translate(polygon, x, y)) for name, polygon in areas]
