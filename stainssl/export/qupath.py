"""Write GeoJSON for QuPath, with one tile object per tile and its measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stainssl.stores.atomic import write_text

CLASS = {"name": "stainssl tile", "color": [94, 60, 153]}


def tile_objects(
    x_level0_px: npt.NDArray[np.int64],
    y_level0_px: npt.NDArray[np.int64],
    side_level0_px: npt.NDArray[np.float64],
    measurements: Mapping[str, npt.NDArray[np.floating]],
    origin_level0_px: tuple[int, int] = (0, 0),
) -> dict[str, object]:
    """Make a GeoJSON FeatureCollection of tile objects, in the format of QuPath ≥ 0.4.

    QuPath crops a slide to its bounds and counts level-0 px from their upper left corner.

    Args:
        x_level0_px, y_level0_px: (N,) upper left corners of the tiles.
        side_level0_px: (N,) sides of the tiles.
        measurements: name → (N,) values, by which QuPath can color tiles (Measure → Show
            measurement maps).
        origin_level0_px: upper left corner of the slide's bounds.
    """
    left, top = origin_level0_px
    columns = {name: np.asarray(values, float).tolist() for name, values in measurements.items()}
    lefts, tops = (x_level0_px - left).tolist(), (y_level0_px - top).tolist()
    corners = zip(lefts, tops, side_level0_px.tolist(), strict=True)
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [_square(x, y, side)]},
            "properties": {
                "objectType": "tile",
                "classification": CLASS,
                "measurements": {name: round(v[i], 6) for name, v in columns.items()},
            },
        }
        for i, (x, y, side) in enumerate(corners)
    ]
    return {"type": "FeatureCollection", "features": features}


def _square(x: float, y: float, side: float) -> list[list[float]]:
    right, bottom = x + side, y + side
    return [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]


def write_geojson(path: Path, collection: Mapping[str, object]) -> None:
    """Write a FeatureCollection to a file atomically."""
    write_text(path, json.dumps(collection, separators=(",", ":")))
