"""Outlines drawn by people, and how much of each tile they cover.

Planes: everything is in level-0 px, as all formats here store it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import pandas as pd
import shapely
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse as parse_xml
from shapely.geometry import Polygon, shape
from shapely.geometry.base import BaseGeometry

from stainssl.errors import StainsslError

Areas = list[tuple[str, BaseGeometry]]
KINDS = ("Polygon", "MultiPolygon")
ELLIPSE_CORNERS = 64
MIN_SHARE = 0.5  # of a tile's area under a class before the tile has it


def _mended(polygon: BaseGeometry) -> BaseGeometry:
    """Outlines that cross themselves as the areas that they enclose; lines and points fall away."""
    if not polygon.is_valid:
        polygon = shapely.make_valid(polygon)
    if polygon.geom_type == "GeometryCollection":
        polygon = shapely.union_all([p for p in polygon.geoms if p.geom_type in KINDS])
    return polygon


def _ring(points: Sequence[tuple[float, float]]) -> BaseGeometry | None:
    """The area inside a ring of points; None where fewer than three corners enclose nothing."""
    return _mended(Polygon(points)) if len(points) >= 3 else None


# --- GeoJSON, as QuPath and others write it ---------------------------------------------------


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
        names = classification.get("names") or []
        return str(classification.get("name") or ": ".join(names))
    return str(classification or properties.get("class") or properties.get("label") or "")


def _from_geojson(path: Path, data: Any) -> Iterator[tuple[str, BaseGeometry]]:
    for number, feature in enumerate(_features(data), start=1):
        geometry = feature.get("geometry")
        if not geometry or geometry.get("type") not in KINDS:
            continue  # points and lines cover nothing
        name = _class_name(feature)
        if not name:
            raise StainsslError(
                f"{path}: feature {number} has no class: give it one (in QuPath: Set class)."
            )
        yield name, _mended(shape(geometry))


# --- JSON with lists of vertices by class, as BCNB is released --------------------------------


def _is_vertices(data: Any) -> bool:
    return isinstance(data, dict) and "positive" in data and "type" not in data


def _from_vertices(data: dict[str, Any]) -> Iterator[tuple[str, BaseGeometry]]:
    for name, outlines in data.items():
        for outline in outlines:
            polygon = _ring([(float(x), float(y)) for x, y in outline["vertices"]])
            if polygon is not None:
                yield name, polygon


def _read_json(path: Path) -> Areas:
    data = json.loads(path.read_text(encoding="utf-8"))
    return list(_from_vertices(data) if _is_vertices(data) else _from_geojson(path, data))


# --- XML: ASAP and ImageScope -----------------------------------------------------------------


def _points(elements: Iterator[Element], order: str = "") -> list[tuple[float, float]]:
    found = list(elements)
    if order:
        found.sort(key=lambda e: int(float(e.get(order, "0"))))
    return [(float(e.attrib["X"]), float(e.attrib["Y"])) for e in found]


def _from_asap(root: Element) -> Iterator[tuple[str, BaseGeometry]]:
    """Areas of ASAP's `<ASAP_Annotations>`; an annotation's group is its class."""
    for drawn in root.iter("Annotation"):
        if drawn.get("Type", "Polygon") in ("Dot", "PointSet", "Measurement"):
            continue
        polygon = _ring(_points(drawn.iter("Coordinate"), order="Order"))
        if polygon is not None:
            yield drawn.get("PartOfGroup") or drawn.get("Name") or "", polygon


def _ellipse(points: list[tuple[float, float]]) -> BaseGeometry:
    (left, top), (right, bottom) = np.min(points, axis=0), np.max(points, axis=0)
    angles = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)
    x = (left + right) / 2 + (right - left) / 2 * np.cos(angles)
    y = (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angles)
    return Polygon(np.stack([x, y], axis=1))


def _region(region: Element) -> BaseGeometry | None:
    """An ImageScope region: Type 0 is free-hand, 1 a rectangle, 2 an ellipse in its rectangle."""
    points = _points(region.iter("Vertex"))
    if region.get("Type") == "2" and len(points) >= 2:
        return _ellipse(points)
    if region.get("Type") == "1" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return shapely.box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    return _ring(points) if region.get("Type", "0") in ("0", "1") else None


def _layer_name(layer: Element) -> str:
    attributes = {a.get("Name", ""): a.get("Value", "") for a in layer.iter("Attribute")}
    return layer.get("Name") or attributes.get("Description") or f"layer {layer.get('Id', '?')}"


def _from_imagescope(root: Element) -> Iterator[tuple[str, BaseGeometry]]:
    """Areas of ImageScope's `<Annotations>`; a layer's negative regions are cut out of its others.

    The class is the region's text, else the layer's name, else `layer <Id>`.
    """
    for layer in root.iter("Annotation"):
        drawn = [(region, _region(region)) for region in layer.iter("Region")]
        areas = [(region, area) for region, area in drawn if area is not None]
        holes = [area for region, area in areas if region.get("NegativeROA") == "1"]
        cut = shapely.union_all(holes) if holes else Polygon()
        for region, area in areas:
            if region.get("NegativeROA") != "1":
                yield region.get("Text") or _layer_name(layer), area.difference(cut)


def _read_xml(path: Path) -> Areas:
    root: Element = parse_xml(path).getroot()
    if root.tag == "ASAP_Annotations":
        return list(_from_asap(root))
    if root.tag == "Annotations":
        return list(_from_imagescope(root))
    raise StainsslError(
        f"{path}: its first element is <{root.tag}>: annotations in XML are read from ASAP"
        " (<ASAP_Annotations>) and ImageScope (<Annotations>)."
    )


FORMATS: dict[str, tuple[str, Callable[[Path], Areas]]] = {
    ".geojson": ("GeoJSON", _read_json),
    ".json": ("GeoJSON", _read_json),
    ".xml": ("annotations in XML", _read_xml),
}
"""Suffix → what the file should be, and its reader."""

_FAULTS = (
    ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError, ParseError,
    DefusedXmlException,
)  # fmt: skip


def read_polygons(path: Path) -> Areas:
    """The areas of an annotation file: GeoJSON (QuPath), ASAP XML or ImageScope XML.

    Args:
        path: `.geojson`, `.json` or `.xml`.

    Returns:
        (class name, polygon or multipolygon in level-0 px) of each area, in the file's order.
        Outlines that cross themselves are fixed; points and lines are left out. Holes are holes;
        ImageScope's negative regions are cut out of their layer.

    Raises:
        StainsslError: another format, a broken file, or a GeoJSON area without a class.
        FileNotFoundError: there is no such file.
    """
    if path.suffix.lower() not in FORMATS:
        raise StainsslError(
            f"{path}: annotations are read from GeoJSON (.geojson, .json) and from ASAP or"
            " ImageScope XML (.xml): export them so."
        )
    kind, read = FORMATS[path.suffix.lower()]
    try:
        return read(path)
    except _FAULTS as error:
        raise StainsslError(f"{path} is not {kind} ({error!s}): export it again.") from error


# --- areas and tiles --------------------------------------------------------------------------


def area_of(areas: Areas, of: Sequence[str], without: Sequence[str] = ()) -> list[BaseGeometry]:
    """The areas of some classes, with those of others cut out of them.

    Args:
        areas: as `read_polygons` gives.
        of: classes that count together.
        without: classes that are cut out, as an `Exclusion` or a normal island in a tumour.
    """
    wanted = [polygon for name, polygon in areas if name in of]
    holes = [polygon for name, polygon in areas if name in without]
    if not wanted or not holes:
        return wanted
    return [shapely.union_all(wanted).difference(shapely.union_all(holes))]


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


def within(tiles: pd.DataFrame, areas: Areas) -> pd.DataFrame:
    """Tiles of which less than half lies in the areas as not kept, reason `region`.

    Args:
        tiles: a slide's tiles: `x`, `y`, `side`, `kept`, `reason`. One that is not kept already
            keeps its reason.
        areas: of any class.
    """
    x, y, side = (tiles[name].to_numpy() for name in ("x", "y", "side"))
    outside = tile_fractions(x, y, side, [polygon for _, polygon in areas]) < MIN_SHARE
    out = tiles["kept"] & outside
    return tiles.assign(kept=tiles["kept"] & ~out, reason=tiles["reason"].mask(out, "region"))
