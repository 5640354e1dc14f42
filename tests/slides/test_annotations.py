"""Outlines become shares of tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon, box

from stainssl.slides.annotations import read_polygons, tile_fractions
from stainssl.status import StainsslError

SQUARE = [[[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]]


def feature(
    name: Any = "tumor", coordinates: Any = SQUARE, kind: str = "Polygon"
) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"classification": {"name": name}} if name else {},
    }


def written(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "wrap", [lambda f: {"type": "FeatureCollection", "features": [f]}, lambda f: [f], lambda f: f]
)
def test_what_qupath_writes_is_read(tmp_path: Path, wrap: Any) -> None:
    path = written(tmp_path / "a.geojson", wrap(feature()))
    ((name, polygon),) = read_polygons(path)
    assert (name, polygon.area) == ("tumor", 10_000)


def test_other_places_of_the_class(tmp_path: Path) -> None:
    features = [feature("") | {"properties": {k: "stroma"}} for k in ("class", "label")]
    features.append(feature("") | {"properties": {"classification": "stroma"}})
    found = read_polygons(written(tmp_path / "a.json", features))
    assert [name for name, _ in found] == ["stroma"] * 3


def test_holes_points_and_crossings(tmp_path: Path) -> None:
    hole = [*SQUARE, [[25, 25], [75, 25], [75, 75], [25, 75], [25, 25]]]
    bow = [[[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]]
    point = feature("", [1, 2], "Point")
    path = written(tmp_path / "a.geojson", [feature(coordinates=hole), point, feature("x", bow)])
    found = read_polygons(path)
    assert [polygon.area for _, polygon in found] == [7500, 5000]


def test_an_area_without_a_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(StainsslError, match="feature 2 has no class"):
        read_polygons(written(tmp_path / "a.geojson", [feature(), feature("")]))


@pytest.mark.parametrize(
    "text", ["", "{", "3", '{"type": "FeatureCollection"}', '[{"geometry": 3}]']
)
def test_what_is_no_geojson_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(StainsslError, match=r"a\.geojson is not GeoJSON"):
        read_polygons(path)


def test_other_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(StainsslError, match="GeoJSON"):
        read_polygons(tmp_path / "a.xml")


@given(st.floats(-50, 150), st.floats(-50, 150), st.floats(1, 80))
def test_the_share_of_a_square_is_that_of_its_overlap(x: float, y: float, side: float) -> None:
    def overlap(start: float) -> float:
        return max(0.0, min(start + side, 100) - max(start, 0))

    share = tile_fractions(np.array([x]), np.array([y]), np.array([side]), [box(0, 0, 100, 100)])
    assert share[0] == pytest.approx(overlap(x) * overlap(y) / side**2, abs=1e-6)


def test_overlaps_count_once_and_no_polygon_is_none() -> None:
    corner = np.array([0.0])
    twice = [box(0, 0, 10, 5), box(0, 0, 10, 5), Polygon([(0, 0), (5, 0), (5, 5), (0, 5)])]
    assert tile_fractions(corner, corner, np.array([10.0]), twice) == pytest.approx([0.5])
    assert tile_fractions(corner, corner, np.array([10.0]), []) == pytest.approx([0.0])
    assert len(tile_fractions(np.array([]), np.array([]), np.array([]), twice)) == 0
