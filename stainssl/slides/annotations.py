"""Outlines drawn by people, and how much of each tile they cover."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from stainssl.status import StainsslError

AREAS = ("Polygon", "MultiPolygon")


def _features(data: Any) -> list[dict[str, Any]]:
    """Features of a collection, of a bare list (older QuPath) or of one feature."""
    if isinstance(data, list):
        return data
    return data["features"] if data.get("type") == "FeatureCollection" else [data]


def _class_name(feature: dict[str, Any]) -> str:
    """QuPath's classification, else a `class` or `label` property, else ""."""
    properties = feature.get("properties") or {}
    classification = properties.get("classification")
    if isinstance(classification, dict):
        return str(classification.get("name", ""))
    return str(classification or properties.get("class") or properties.get("label") or "")


def _polygons(path: Path, data: Any) -> Iterator[tuple[str, BaseGeometry]]:
    for number, feature in enumerate(_features(data), start=1):
        geometry = feature.get("geometry")
        if not geometry or geometry.get("type") not in AREAS:
            continue  # points and lines cover nothing
        polygon = shape(geometry)
        if not polygon.is_valid:
            polygon = shapely.make_valid(polygon)
        name = _class_name(feature)
        if not name:
            raise StainsslError(
                f"{path}: feature {number} has no class: give it one (in QuPath: Set class)."
            )
        yield name, polygon


def read_polygons(path: Path) -> list[tuple[str, BaseGeometry]]:
    """The areas of a GeoJSON file as QuPath writes it.

    Args:
        path: `.geojson` or `.json`.

    Returns:
        (class name, polygon or multipolygon in level-0 px) of each area, in the file's order.
        Outlines that cross themselves are mended; points and lines are left out.

    Raises:
        StainsslError: another format, not GeoJSON, or an area without a class.
        FileNotFoundError: there is no such file.
    """
    if path.suffix.lower() not in (".geojson", ".json"):
        raise StainsslError(
            f"{path}: annotations are read from GeoJSON (.geojson, .json): export them so."
        )
    try:
        return list(_polygons(path, json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise StainsslError(f"{path} is not GeoJSON ({error}): export it again.") from error


def tile_fractions(
    x_level0_px: np.ndarray,
    y_level0_px: np.ndarray,
    side_level0_px: np.ndarray,
    polygons: Sequence[BaseGeometry],
) -> np.ndarray:
    """The share of each tile's area under the union of polygons.

    Args:
        x_level0_px, y_level0_px, side_level0_px: (n,) top left corner and side of the tiles.
        polygons: in level-0 px; overlaps count once.

    Returns:
        (n,) float64, 0–1.
    """
    shares = np.zeros(len(x_level0_px))
    if not len(polygons) or not len(shares):
        return shares
    x, y, side = (np.asarray(v, float) for v in (x_level0_px, y_level0_px, side_level0_px))
    tiles = shapely.box(x, y, x + side, y + side)
    union = shapely.union_all(list(polygons))
    shapely.prepare(union)
    inside = shapely.contains_properly(union, tiles)
    shares[inside] = 1.0
    partly = shapely.intersects(union, tiles) & ~inside
    shares[partly] = shapely.area(shapely.intersection(tiles[partly], union)) / side[partly] ** 2
    return np.clip(shares, 0, 1)
