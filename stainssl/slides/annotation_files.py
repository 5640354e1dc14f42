"""Readers of annotation files: GeoJSON (QuPath), ASAP XML, ImageScope XML and BCNB JSON.

All coordinates are in level-0 px, as stored by these formats.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import shapely
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse as parse_xml
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from stainssl.errors import StainsslError

Areas = list[tuple[str, BaseGeometry]]
KINDS = ("Polygon", "MultiPolygon")
ELLIPSE_CORNERS = 64
MAX_CROSSINGS = 20_000  # self-intersections: drawn outlines have few, damaged ones millions
BATCH_SEGMENTS = 64  # bounds the memory for counting them
TOO_FEW = "outline of fewer than three corners ignored"


@dataclass(frozen=True)
class Annotations:
    """Content of an annotation file.

    Attributes:
        areas: (class name, polygon or multipolygon in level-0 px) in the order of the file; the
            name is "" if there is none.
        notes: message about ignored or converted objects → number of objects.
    """

    areas: Areas
    notes: Mapping[str, int] = field(default_factory=dict)

    def classes(self) -> Counter[str]:
        """Number of areas by class; "" for areas without a class."""
        return Counter(name for name, _ in self.areas)

    def summary(self) -> str:
        """Numbers of areas by class, and notes, as one line for a log."""
        classes = [f"{name or 'no class'} {n}" for name, n in self.classes().items()]
        notes = [f"{n} × {note}" for note, n in self.notes.items()]
        return ", ".join(classes or ["no area"]) + "".join(f"; {note}" for note in notes)


# --- rings ------------------------------------------------------------------------------------


def _segments(polygon: BaseGeometry) -> np.ndarray:
    """(n,) line segments of all rings of a polygon or multipolygon."""
    rings = shapely.get_rings(shapely.get_parts(polygon))
    points, of = shapely.get_coordinates(rings, return_index=True)
    same = of[1:] == of[:-1]
    pieces: np.ndarray = shapely.linestrings(
        np.stack([points[:-1][same], points[1:][same]], axis=1)
    )
    return pieces


def _refuse_tangles(polygon: BaseGeometry) -> None:
    """Refuse an outline with too many self-intersections to be repaired.

    Memory and time of the repair are proportional to their number; a ring of a few thousand
    random points has millions.

    Raises:
        ValueError: more than `MAX_CROSSINGS` self-intersections.
    """
    pieces = _segments(polygon)
    tree, found = shapely.STRtree(pieces), 0
    for start in range(0, len(pieces), BATCH_SEGMENTS):
        batch = pieces[start : start + BATCH_SEGMENTS]
        found += tree.query(batch, predicate="crosses").shape[1]
        if found > 2 * MAX_CROSSINGS:  # each crossing is found twice, once by each segment
            raise ValueError(f"an outline crosses itself more than {MAX_CROSSINGS} times")


def _fixed(polygon: BaseGeometry) -> BaseGeometry:
    """Repair self-intersecting outlines by `shapely.make_valid`, and drop its lines and points."""
    if not polygon.is_valid:
        _refuse_tangles(polygon)
        polygon = shapely.make_valid(polygon)
    if polygon.geom_type == "GeometryCollection":
        polygon = shapely.union_all([p for p in polygon.geoms if p.geom_type in KINDS])
    return polygon


def _corners(points: Sequence[Sequence[float]]) -> np.ndarray:
    """Vertices of a ring, (n, 2) float64; a third coordinate is ignored.

    Raises:
        ValueError: a coordinate is not a finite number.
    """
    found = np.array([point[:2] for point in points], float).reshape(-1, 2)
    if not np.isfinite(found).all():
        raise ValueError("a coordinate is not a finite number")
    return found


def _area(rings: Sequence[Sequence[Sequence[float]]], notes: Counter[str]) -> BaseGeometry | None:
    """Polygon of an outer ring and holes; None, with a note, if the outer ring has no area."""
    corners = [_corners(ring) for ring in rings]
    is_ring = [len(np.unique(ring, axis=0)) >= 3 for ring in corners]
    if not is_ring or not is_ring[0]:
        notes[TOO_FEW] += 1
        return None
    holes = [ring for ring, sound in zip(corners[1:], is_ring[1:], strict=True) if sound]
    return _fixed(Polygon(corners[0], holes))


# --- GeoJSON, as QuPath and others write it ---------------------------------------------------


def _features(data: Any) -> list[dict[str, Any]]:
    """Features of a collection, a plain list (older QuPath), a single feature or a geometry.

    Raises:
        ValueError: the JSON is not GeoJSON.
    """
    if isinstance(data, dict) and isinstance(data.get("features"), list):
        data = data["features"]
    elif isinstance(data, dict) and data.get("type") == "Feature":
        data = [data]
    elif isinstance(data, dict) and "coordinates" in data:
        data = [{"geometry": data}]
    if not isinstance(data, list):
        raise ValueError(_other_json(data))
    strange = next((f for f in data if not (isinstance(f, dict) and "geometry" in f)), None)
    if strange is not None:
        keys = ", ".join(map(repr, strange)) if isinstance(strange, dict) else repr(strange)[:40]
        raise ValueError(f"its objects have {keys or 'no keys'} and no 'geometry'")
    return data


def _other_json(data: Any) -> str:
    if not isinstance(data, dict):
        return f"it holds {repr(data)[:40]}"
    if "elements" in data or "annotation" in data:
        return "it is JSON of the Digital Slide Archive (HistomicsUI)"
    return f"it has {', '.join(map(repr, list(data)[:6])) or 'no keys'} and no 'features'"


def named(name: object) -> str:
    """Normalize a class name: strip and collapse white space, Unicode NFC."""
    return unicodedata.normalize("NFC", " ".join(str(name).split()))


def _class_name(feature: Mapping[str, Any]) -> str:
    """Class of a feature: QuPath's classification, or the property `class` or `label`, or ""."""
    properties = feature.get("properties") or {}
    classification = properties.get("classification")
    if isinstance(classification, dict):
        names = classification.get("names") or []
        classification = classification.get("name") or ": ".join(map(str, names))
    found = (classification, properties.get("class"), properties.get("label"))
    return named(next((name for name in found if name not in (None, "")), ""))


def _areas(geometry: Mapping[str, Any], notes: Counter[str]) -> Iterator[BaseGeometry]:
    """Yield the areas of a GeoJSON geometry; a closed LineString is read as a polygon."""
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _areas(part, notes)
        return
    points: Any = geometry.get("coordinates")
    if kind == "LineString" and len(points or []) > 3 and points[0] == points[-1]:
        notes["closed line read as a polygon"] += 1
        kind, points = "Polygon", [points]
    if kind not in KINDS:
        notes[f"{kind} ignored"] += 1
        return
    found = [_area(rings, notes) for rings in ([points] if kind == "Polygon" else points)]
    kept = [area for area in found if area is not None]
    if len(kept) == 1:
        yield kept[0]
    elif kept:
        parts = [part for area in kept for part in shapely.get_parts(area)]
        yield _fixed(MultiPolygon(parts))


def _from_geojson(data: Any) -> Annotations:
    notes: Counter[str] = Counter()
    areas: Areas = []
    for feature in _features(data):
        if not feature["geometry"]:
            notes["object without geometry ignored"] += 1
            continue
        areas += [(_class_name(feature), area) for area in _areas(feature["geometry"], notes)]
    return Annotations(areas, notes)


# --- JSON with lists of vertices by class, as in the BCNB data set ----------------------------


def _is_vertices(data: Any) -> bool:
    return isinstance(data, dict) and "positive" in data and "type" not in data


def _from_vertices(data: Mapping[str, Any]) -> Annotations:
    notes: Counter[str] = Counter()
    found = [
        (named(name), _area([outline["vertices"]], notes))
        for name, outlines in data.items()
        for outline in outlines
    ]
    return Annotations([(name, area) for name, area in found if area is not None], notes)


def _read_json(path: Path) -> Annotations:
    data = json.loads(path.read_bytes())  # UTF-8, -16 or -32, with or without a byte order mark
    return _from_vertices(data) if _is_vertices(data) else _from_geojson(data)


# --- XML: ASAP and ImageScope -----------------------------------------------------------------


def _number(text: str) -> float:
    """Parse a coordinate; under some locales, ASAP writes a decimal comma."""
    return float(text.replace(",", "."))


def _points(elements: Iterator[Element], order: str = "") -> list[tuple[float, float]]:
    found = list(elements)
    if order:
        found.sort(key=lambda e: _number(e.get(order, "0")))
    return [(_number(e.attrib["X"]), _number(e.attrib["Y"])) for e in found]


def _from_asap(root: Element) -> Annotations:
    """Areas of ASAP's `<ASAP_Annotations>`; the class is the annotation's group.

    If the group is `None`, ASAP's value for no group, the class is the annotation's name.
    """
    notes: Counter[str] = Counter()
    areas: Areas = []
    for drawn in root.iter("Annotation"):
        kind = drawn.get("Type", "Polygon")
        if kind in ("Dot", "PointSet", "Measurement"):
            notes[f"{kind} ignored"] += 1
            continue
        area = _area([_points(drawn.iter("Coordinate"), order="Order")], notes)
        group = drawn.get("PartOfGroup") or "None"
        if area is not None:
            areas.append((named(drawn.get("Name") or "" if group == "None" else group), area))
    return Annotations(areas, notes)


def _ellipse(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Vertices of the ellipse inscribed in the bounding box of `points`."""
    (left, top), (right, bottom) = np.min(points, axis=0), np.max(points, axis=0)
    angles = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)
    x = (left + right) / 2 + (right - left) / 2 * np.cos(angles)
    y = (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angles)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _region(region: Element, notes: Counter[str]) -> BaseGeometry | None:
    """Area of an ImageScope region: type 0 is freehand, 1 a rectangle, 2 an ellipse."""
    points, kind = _points(region.iter("Vertex")), region.get("Type", "0")
    if kind not in ("0", "1", "2"):
        notes[f"region of type {kind} ignored"] += 1
        return None
    if kind == "2" and len(points) >= 2:
        points = _ellipse(points)
    elif kind == "1" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return _area([points], notes)


def _layer_name(layer: Element) -> str:
    attributes = {a.get("Name", ""): a.get("Value", "") for a in layer.iter("Attribute")}
    return layer.get("Name") or attributes.get("Description") or f"layer {layer.get('Id', '?')}"


def _from_imagescope(root: Element) -> Annotations:
    """Areas of ImageScope's `<Annotations>`; negative regions are subtracted from their layer.

    The class is the region's text, or the layer's name (or description), or `layer <Id>`.
    """
    notes: Counter[str] = Counter()
    found: Areas = []
    for layer in root.iter("Annotation"):
        drawn = [(region, _region(region, notes)) for region in layer.iter("Region")]
        areas = [(region, area) for region, area in drawn if area is not None]
        holes = [area for region, area in areas if region.get("NegativeROA") == "1"]
        cut = shapely.union_all(holes) if holes else Polygon()
        for region, area in areas:
            if region.get("NegativeROA") != "1":
                name = region.get("Text") or _layer_name(layer)
                found.append((named(name), area.difference(cut)))
    return Annotations(found, notes)


def _read_xml(path: Path) -> Annotations:
    root: Element = parse_xml(path).getroot()
    if root.tag == "ASAP_Annotations":
        return _from_asap(root)
    if root.tag == "Annotations":
        return _from_imagescope(root)
    raise StainsslError(
        f"{path}: its first element is <{root.tag}>: annotations in XML are read from ASAP"
        " (<ASAP_Annotations>) and ImageScope (<Annotations>)."
    )


FORMATS: dict[str, tuple[str, Callable[[Path], Annotations]]] = {
    ".geojson": ("GeoJSON", _read_json),
    ".json": ("GeoJSON", _read_json),
    ".xml": ("annotations in XML", _read_xml),
}
"""Suffix → format, as named in error messages, and reader."""

_FAULTS = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError,
    shapely.errors.ShapelyError, ParseError, DefusedXmlException,
)  # fmt: skip


def read_annotations(path: Path) -> Annotations:
    """Read an annotation file: GeoJSON (QuPath), BCNB JSON, ASAP XML or ImageScope XML.

    Self-intersecting outlines are repaired. Points and lines are ignored, and counted in `notes`.
    Holes are kept; negative regions of ImageScope are subtracted from the other regions of their
    layer.

    Args:
        path: file with suffix `.geojson`, `.json` or `.xml`.

    Returns:
        The areas in level-0 px, and notes.

    Raises:
        StainsslError: another format, or a damaged file.
        FileNotFoundError: the file is missing.
    """
    if path.suffix.lower() not in FORMATS:
        raise StainsslError(
            f"{path}: annotations are read from GeoJSON (.geojson, .json) and from ASAP or"
            " ImageScope XML (.xml): export them in one of these formats."
        )
    kind, read = FORMATS[path.suffix.lower()]
    try:
        return read(path)
    except _FAULTS as error:
        raise StainsslError(f"{path} is not {kind} ({error!s}): export it again.") from error
