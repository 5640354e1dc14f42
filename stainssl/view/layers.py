"""Layers over a slide: tiles, outlines of tissue and ink, annotations, attention, stain.

All lengths and positions are in image px: level-0 px relative to the corner of the slide's bounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from stainssl.cohort import stored_pixels, why_not_stored
from stainssl.cohort.outlines import file_of_slide
from stainssl.errors import SlideError, StainsslError
from stainssl.slides.annotation_files import read_annotations
from stainssl.slides.scale import read_thumbnail, resolve_mpp
from stainssl.slides.slide import Slide
from stainssl.slides.tissue import segment_tissue
from stainssl.stores.pixels import Pixels, open_pixels
from stainssl.stores.tables import read_table
from stainssl.stores.tiles import read_tiles
from stainssl.view.pyramid import TILE_PX, Pyramid
from stainssl.view.records import Json, Records, columns, json_column

STAIN = "macenko"  # method of the profiles shown
COLORS = 64  # steps of the color map
TOLERANCE = 0.5  # of simplified outlines, in mask px; leaves a tenth of the points


def viridis(count: int) -> list[str]:
    """Return `count` colors of the viridis color map from low to high, as `#rrggbb`."""
    steps = np.rint(np.linspace(0, 255, count)).astype(np.uint8)[:, None]
    blue_green_red = cv2.applyColorMap(steps, cv2.COLORMAP_VIRIDIS)[:, 0]
    return [f"#{r:02x}{g:02x}{b:02x}" for b, g, r in blue_green_red.tolist()]


SCALE = viridis(COLORS)


def level0_mpp(slide: Slide, sheet_mpp: float) -> float | None:
    """Return the µm/px of level 0, or None if `resolve_mpp` finds no usable value."""
    try:
        return resolve_mpp(sheet_mpp, slide)[0]
    except SlideError:
        return None


def slide_geometry(slide: Slide, sheet_mpp: float) -> Json:
    """Return what the page needs to show an open slide: sizes in image px, µm/px, and format."""
    pyramid = Pyramid.of(slide)
    return {
        "width": pyramid.width_px,
        "height": pyramid.height_px,
        "left": pyramid.left_level0_px,
        "top": pyramid.top_level0_px,
        "deepest": pyramid.deepest,
        "picture": TILE_PX,
        "mpp": level0_mpp(slide, sheet_mpp),
        "objective": slide.objective_power,
        "vendor": slide.vendor,
        "reader": slide.reader,
    }


class Layers:
    """Layers of the slides of a config's cohorts."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def tiles_path(self, cohort: str, slide: str) -> Path:
        """Return the path of the tile table of the slide's part."""
        return self.records.paths.tiles(cohort, self.records.part(cohort, slide))

    def tile_table(self, cohort: str, slide: str) -> pd.DataFrame:
        """Read the tiles of a slide, including those left out.

        Raises:
            StainsslError: the slide has not been tiled.
        """
        tiles = read_tiles(self.tiles_path(cohort, slide))
        return tiles[tiles["slide_id"] == slide]

    def tiles(self, cohort: str, slide: str, pyramid: Pyramid) -> Json:
        """Return the tile grid: side, and position, tissue, sharpness and reason for exclusion.

        Raises:
            StainsslError: the slide has not been tiled.
        """
        found = self.tile_table(cohort, slide)
        shown = pd.DataFrame(
            {
                "tile": found["tile"],
                "x": found["x"] - pyramid.left_level0_px,
                "y": found["y"] - pyramid.top_level0_px,
                "reason": found["reason"],
                "tissue": found["tissue"],
                "sharpness": found["sharpness"],
            }
        )
        side = float(found["side"].iloc[0]) if len(found) else 0.0
        return {"side": side, "columns": columns(shown)}

    def annotations(self, cohort: str, slide: str, pyramid: Pyramid) -> list[Json]:
        """Return the class and rings of each annotation; empty if the slide has no file.

        Raises:
            StainsslError: the annotation file cannot be read.
        """
        path = file_of_slide(self.records.config.cohorts[cohort].annotations, slide)
        if path is None:
            return []
        corner = np.array([pyramid.left_level0_px, pyramid.top_level0_px])
        return [
            {"class": name, "rings": [_points(np.asarray(r.coords) - corner) for r in rings(area)]}
            for name, area in read_annotations(path).areas
        ]

    def outlines(self, slide: Slide, sheet_mpp: float, cohort: str) -> Json:
        """Return rings around tissue and ink, from the same mask as the tiling.

        Raises:
            SlideError: the slide has no usable µm/px, or cannot be read.
            OSError: the disk or the mount fails.
        """
        mpp = resolve_mpp(sheet_mpp, slide)[0]
        mask = self.records.config.tiling_of(cohort).mask
        mask_mpp = max(mask.mpp, mpp)
        thumbnail = read_thumbnail(slide, mask_mpp, mpp)
        found = segment_tissue(thumbnail, mask_mpp, mask.kind, mask.min_area_um2, mask.min_hole_um2)
        ratio = mask_mpp / mpp
        return {"tissue": contours(found.tissue, ratio), "ink": contours(found.ink, ratio)}

    def attention(self, cohort: str, slide: str, name: str) -> Json:
        """Return the percentile rank of each tile's attention within its slide, from 0 to 1.

        Raises:
            KeyError: the cohort has no such predictions.
            StainsslError: the attention file cannot be read.
        """
        stored = self.records.find_predictions(cohort, name)
        found = _of_slide(stored.folder / "attention.parquet", "attention", slide)
        return {
            "title": stored.title,
            "said": "percentile rank of a tile's attention within the slide",
            "tile": json_column(found["tile"]),
            "value": json_column(found["attention"].astype(float)),
        }

    def probability(self, cohort: str, slide: str, name: str) -> Json:
        """Return the probability of the last class for each test tile, averaged over repeats.

        Raises:
            KeyError: the cohort has no such predictions.
            StainsslError: the predictions cannot be read.
        """
        path = self.records.tile_predictions(cohort)[name]
        found = _of_slide(path, "predictions", slide)
        positive = [c for c in found if c.startswith("p_")][-1]
        means = found.groupby("tile")[positive].mean()
        task, encoder = name.split("~")
        spec = self.records.config.tasks[task]
        protocol = "fine-tuning" if spec.is_fine_tuned else "linear probe"
        return {
            "title": f"{task}: {protocol} on {encoder}",
            "said": f"probability that {spec.label} is {positive[2:]}, test tiles only",
            "tile": json_column(means.index.to_numpy()),
            "value": json_column(means.astype(float)),
        }

    def pixels(self, cohort: str, slide: str) -> tuple[Pixels, np.ndarray]:
        """Open the store of tile JPEGs of a slide's part; returns it with the slide's rows, (n,).

        Raises:
            StainsslError: there is no store, or it cannot be read.
        """
        part, config = self.records.part(cohort, slide), self.records.config
        store = stored_pixels(config, cohort, part)
        if store is None and (why := why_not_stored(config, cohort)):
            raise StainsslError(f"The tiles of {slide} are not stored ({why}).")
        pixels = open_pixels(store or config.paths.pixels(cohort, part))
        own = pixels.slide_id.index(slide) if slide in pixels.slide_id else -1
        return pixels, np.flatnonzero(pixels.slide == own)

    def stain(self, cohort: str, slide: str) -> Json:
        """Return the hematoxylin and eosin strength of each tile with a valid profile.

        Raises:
            StainsslError: the slide has no stored pixels, or they have no profiles.
        """
        pixels, rows = self.pixels(cohort, slide)
        fields = pixels.profile(STAIN)
        if not fields:
            raise StainsslError(f"The stored pixels of {slide} have no {STAIN} profiles.")
        valid = rows[fields["valid"][rows].astype(bool)]
        strength = fields["scale"][valid].astype(float)
        return {
            "said": "99th percentile of the stain concentration in each tile (Macenko)",
            "tile": json_column(pixels.tile[valid]),
            "hematoxylin": json_column(strength[:, 0]),
            "eosin": json_column(strength[:, 1]),
        }


def _of_slide(path: Path, kind: str, slide: str) -> pd.DataFrame:
    table = read_table(path, kind)
    return table[table["slide_id"] == slide]


def _points(xy: np.ndarray) -> list[list[float]]:
    return [[round(float(x), 1), round(float(y), 1)] for x, y in xy[:, :2]]


def rings(area: Any) -> list[Any]:
    """Return the exterior and interior rings of a shapely polygon or multipolygon."""
    polygons = getattr(area, "geoms", [area])
    return [ring for p in polygons if not p.is_empty for ring in (p.exterior, *p.interiors)]


def contours(mask: np.ndarray, image_px_per_px: float) -> list[list[list[float]]]:
    """Return simplified rings around the regions and holes of a mask, in image px.

    Args:
        mask: (h, w) bool.
        image_px_per_px: image px per mask px.
    """
    # Doubled, so that rings run along the edges of the mask's pixels, not through their centers.
    large = np.repeat(np.repeat(mask.astype(np.uint8), 2, 0), 2, 1)
    found, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    simple = [cv2.approxPolyDP(ring, 2 * TOLERANCE, True)[:, 0] for ring in found]
    return [_points((ring + 0.5) / 2 * image_px_per_px) for ring in simple if len(ring) > 2]
