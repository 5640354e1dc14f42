"""Annotation files, and the share of each tile that their areas cover."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon, box

from stainssl.errors import StainsslError
from stainssl.slides.annotation_files import Areas, read_annotations
from stainssl.slides.annotations import (
    area_of,
    discard_outside,
    is_near,
    near_classes,
    tile_fractions,
)

SQUARE = [[[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]]


def feature(
    name: Any = "tumor", coordinates: Any = SQUARE, kind: str = "Polygon"
) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"classification": {"name": name}} if name else {},
    }


def write_json(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "wrap", [lambda f: {"type": "FeatureCollection", "features": [f]}, lambda f: [f], lambda f: f]
)
def test_geojson_of_qupath_is_read(tmp_path: Path, wrap: Any) -> None:
    path = write_json(tmp_path / "a.geojson", wrap(feature()))
    ((name, polygon),) = read_polygons(path)
    assert (name, polygon.area) == ("tumor", 10_000)


def test_class_is_read_from_other_properties(tmp_path: Path) -> None:
    features = [feature("") | {"properties": {k: "stroma"}} for k in ("class", "label")]
    features.append(feature("") | {"properties": {"classification": "stroma"}})
    found = read_polygons(write_json(tmp_path / "a.json", features))
    assert [name for name, _ in found] == ["stroma"] * 3


def test_holes_points_and_self_intersections(tmp_path: Path) -> None:
    hole = [*SQUARE, [[25, 25], [75, 25], [75, 75], [25, 75], [25, 25]]]
    bow = [[[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]]
    point = feature("", [1, 2], "Point")
    path = write_json(tmp_path / "a.geojson", [feature(coordinates=hole), point, feature("x", bow)])
    found = read_polygons(path)
    assert [polygon.area for _, polygon in found] == [7500, 5000]


def test_areas_without_a_class_are_kept(tmp_path: Path) -> None:
    found = read_annotations(write_json(tmp_path / "a.geojson", [feature(), feature("")]))
    assert [name for name, _ in found.areas] == ["tumor", ""]
    assert found.summary() == "tumor 1, no class 1"
    trident = [feature("") | {"properties": {"tissue_id": 0}}]
    assert len(read_polygons(write_json(tmp_path / "b.geojson", trident))) == 1


def test_other_geometries_than_polygons_are_counted(tmp_path: Path) -> None:
    square, two = SQUARE[0], [[[0, 0], [5, 5], [0, 0]]]
    collection = feature() | {
        "geometry": {
            "type": "GeometryCollection",
            "geometries": [{"type": "Polygon", "coordinates": SQUARE}, {"type": "Point"}],
        }
    }
    features = [
        collection, feature(coordinates=square, kind="LineString"), feature("x", two),
        feature() | {"geometry": None}, feature(coordinates=square[:3], kind="LineString"),
    ]  # fmt: skip
    found = read_annotations(write_json(tmp_path / "a.geojson", {"features": features}))
    assert [(name, area.area) for name, area in found.areas] == [("tumor", 10_000)] * 2
    assert dict(found.notes) == {
        "Point ignored": 1, "closed line read as a polygon": 1,
        "outline of fewer than three corners ignored": 1,
        "object without geometry ignored": 1, "LineString ignored": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "it has no keys and no 'features'"),
        ({"name": "t", "elements": []}, "Digital Slide Archive"),
        ({"annotation": {"elements": []}}, "Digital Slide Archive"),
        ([{"label": "tumor", "polygon": SQUARE}], "'label', 'polygon' and no 'geometry'"),
        ([feature(coordinates=[[[0, 0], [float("nan"), 1], [2, 2], [0, 0]]])], "a finite number"),
        ([feature(coordinates=[[[0, 0], [float("inf"), 1], [2, 2], [0, 0]]])], "a finite number"),
        ([feature(coordinates=[[0, 1], [2, 2], [0, 0]])], ""),
    ],
)
def test_json_that_is_not_geojson_is_refused(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(StainsslError, match=r"a\.json is not GeoJSON") as caught:
        read_annotations(write_json(tmp_path / "a.json", data))
    assert message in str(caught.value)


def test_deep_nesting_and_encodings(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text("[" * 100_000)
    with pytest.raises(StainsslError, match="is not GeoJSON"):
        read_annotations(path)
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(json.dumps([feature("Größe")], ensure_ascii=False), encoding=encoding)
        assert read_annotations(path).areas[0][0] == "Größe"


def test_an_outline_with_too_many_self_intersections_is_refused(
    tmp_path: Path,
) -> None:
    ring = np.random.default_rng(0).uniform(0, 10_000, (3000, 2)).tolist()
    path = write_json(tmp_path / "a.geojson", [feature(coordinates=[[*ring, ring[0]]])])
    with pytest.raises(StainsslError, match="crosses itself more than"):
        read_annotations(path)


def test_asap_with_decimal_commas_and_without_a_group(tmp_path: Path) -> None:
    path = asap_file(tmp_path / "a.xml", ("Polygon", "None", CORNERS))
    path.write_text(path.read_text().replace("100.0", "100,5"))
    ((name, polygon),) = read_polygons(path)
    assert (name, polygon.area) == ("A0", 100.5**2)
    path.write_text(path.read_text().replace('Order="2"', 'Order="inf"'))
    read_annotations(path)


@pytest.mark.parametrize(
    ("found", "near"),
    [
        ("Tumor", True), ("TUMOR", True), ("Tumour", True), ("tumors", True),
        ("tumor: Positive", True), ("Tumor: in situ", True), ("stroma", False),
        ("non-tumor", False), ("tumor bed", False), ("humor", False),
    ],
)  # fmt: skip
def test_similar_class_names(found: str, near: bool) -> None:
    assert is_near(found, "tumor") == near
    assert near_classes(["tumor", found], ["tumor"], {"tumor"}) == ([found] if near else [])
    assert near_classes([found], ["tumor"], {"tumor", found}) == []


def read_polygons(path: Path) -> Areas:
    return read_annotations(path).areas


@pytest.mark.parametrize(
    "text", ["", "{", "3", '{"type": "FeatureCollection"}', '[{"geometry": 3}]']
)
def test_invalid_geojson_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(StainsslError, match=r"a\.geojson is not GeoJSON"):
        read_polygons(path)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StainsslError, match="GeoJSON"):
        read_polygons(tmp_path / "a.ndpa")
    (tmp_path / "a.xml").write_text("<kml/>")
    with pytest.raises(StainsslError, match="its first element is <kml>"):
        read_polygons(tmp_path / "a.xml")


def asap_file(path: Path, *drawn: tuple[str, str, list[tuple[float, float]]]) -> Path:
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    for number, (kind, group, points) in enumerate(drawn):
        one = ElementTree.SubElement(
            annotations, "Annotation", Name=f"A{number}", Type=kind, PartOfGroup=group
        )
        ring = ElementTree.SubElement(one, "Coordinates")
        for order, (x, y) in reversed(list(enumerate(points))):  # only `Order` is correct
            ElementTree.SubElement(ring, "Coordinate", Order=str(order), X=str(x), Y=str(y))
    ElementTree.ElementTree(root).write(path)
    return path


CORNERS = [(0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (0.0, 100.0)]
INNER = [(25.0, 25.0), (75.0, 25.0), (75.0, 75.0), (25.0, 75.0)]


def test_asap_groups_are_classes_and_dots_are_ignored(tmp_path: Path) -> None:
    path = asap_file(
        tmp_path / "a.xml",
        ("Polygon", "metastases", CORNERS), ("Spline", "normal", INNER),
        ("Dot", "metastases", [(3, 3)]),
    )  # fmt: skip
    areas = read_polygons(path)
    assert [(name, polygon.area) for name, polygon in areas] == [
        ("metastases", 10_000), ("normal", 2500),
    ]  # fmt: skip
    (cut,) = area_of(areas, ["metastases", "_0"], ["normal"])
    assert cut.area == 7500
    assert area_of(areas, ["_0"], ["normal"]) == []


def imagescope(regions: str, layer: str = 'Id="1" Name=""') -> str:
    return (
        f'<Annotations MicronsPerPixel="0.5"><Annotation {layer}><Attributes>'
        f'<Attribute Name="Description" Value="tumor"/></Attributes><Regions>{regions}</Regions>'
        "</Annotation></Annotations>"
    )


def scope_region(points: list[tuple[float, float]], **attributes: str) -> str:
    attributes_text = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    ring = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return f"<Region {attributes_text}><Vertices>{ring}</Vertices></Region>"


def test_imagescope_exclusions_rectangles_and_ellipses(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    drawn = [
        scope_region(CORNERS, Type="0", NegativeROA="0"),
        scope_region(INNER, Type="1", NegativeROA="1"),
        scope_region([(200, 0), (220, 10)], Type="2", Text="necrosis"),
        scope_region([(0, 0), (50, 50)], Type="3"),  # an arrow
    ]
    path.write_text(imagescope("".join(drawn)))
    (tumor, first), (necrosis, second) = read_polygons(path)
    assert (tumor, first.area) == ("tumor", 7500)
    assert necrosis == "necrosis"
    assert second.area == pytest.approx(np.pi * 10 * 5, rel=0.01)


def test_json_of_bcnb_is_read(tmp_path: Path) -> None:
    data = {"positive": [{"name": "Annotation 0", "vertices": CORNERS}], "negative": []}
    ((name, polygon),) = read_polygons(write_json(tmp_path / "1.json", data))
    assert (name, polygon.area) == ("positive", 10_000)


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY c "&b;&b;">]><Annotations>&c;</Annotations>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "/etc/hostname">]><Annotations>&x;</Annotations>',
        "<Annotations><Annotation>",
        "",
        '<Annotations><Annotation><Regions><Region><Vertices><Vertex X="a" Y="1"/></Vertices>'
        "</Region></Regions></Annotation></Annotations>",
    ],
)
def test_malicious_or_broken_xml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(StainsslError, match=r"a\.xml is not annotations in XML"):
        read_polygons(path)


def test_tiles_outside_the_regions_are_discarded() -> None:
    tiles = pd.DataFrame({"x": [0, 40, 60, 0], "y": 0, "side": 100.0})
    tiles["kept"] = [True, True, True, False]
    tiles["reason"] = ["", "", "", "pen"]
    found = discard_outside(tiles, [("any", box(0, 0, 100, 100))])
    assert found["reason"].tolist() == ["", "", "region", "pen"]
    assert found["kept"].tolist() == [True, True, False, False]
    assert not discard_outside(tiles, [])["kept"].any()


@given(st.floats(-50, 150), st.floats(-50, 150), st.floats(1, 80))
def test_tile_fraction_equals_the_overlap_of_two_squares(x: float, y: float, side: float) -> None:
    def overlap(start: float) -> float:
        return max(0.0, min(start + side, 100) - max(start, 0))

    share = tile_fractions(np.array([x]), np.array([y]), np.array([side]), [box(0, 0, 100, 100)])
    assert share[0] == pytest.approx(overlap(x) * overlap(y) / side**2, abs=1e-6)


def test_overlapping_areas_count_once_and_no_areas_give_zero() -> None:
    corner = np.array([0.0])
    twice = [box(0, 0, 10, 5), box(0, 0, 10, 5), Polygon([(0, 0), (5, 0), (5, 5), (0, 5)])]
    assert tile_fractions(corner, corner, np.array([10.0]), twice) == pytest.approx([0.5])
    assert tile_fractions(corner, corner, np.array([10.0]), []) == pytest.approx([0.0])
    assert len(tile_fractions(np.array([]), np.array([]), np.array([]), twice)) == 0
