"""Origin of annotation coordinates: the corner of the slide, or of its scanned bounds.

In SCN, MRXS and BIF, the scanned bounds lie within a larger, mostly empty image. As in OpenSlide,
coordinates here are level-0 px of the whole image. QuPath crops to the bounds, and its coordinates
start at their corner; ASAP, ImageScope, CLAM and TRIDENT use OpenSlide's coordinates.
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
    """Origin of an annotation file's coordinates in the slide.

    Args:
        path: annotation file.
        frame: `bounds`, `slide`, or `auto`: `bounds` for GeoJSON (assumed to be QuPath's),
            otherwise `slide`.
        bounds_level0_px: x, y, width, height of the slide's bounds.

    Returns:
        x, y in level-0 px.
    """
    if frame == "auto":
        frame = "bounds" if path.suffix.lower() in OF_QUPATH else "slide"
    return bounds_level0_px[:2] if frame == "bounds" else (0, 0)


def in_slide(areas: Areas, origin_level0_px: tuple[int, int]) -> Areas:
    """Translate areas from coordinates relative to an origin to level-0 px of the whole slide."""
    x, y = origin_level0_px
    if (x, y) == (0, 0):
        return areas
    return [(name, translate(polygon, x, y)) for name, polygon in areas]
