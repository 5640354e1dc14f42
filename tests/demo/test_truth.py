from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shapely.geometry import Point, shape

from stainssl.demo.plan import plan
from stainssl.demo.scene import TUMOUR, TUMOUR_CELL, draw_scene
from stainssl.demo.truth import FEATURES, label_maps, morphology

from .conftest import PATIENTS, SEED, SIDE_PX


def test_polygons_are_valid_and_inside_the_slide(small_cohort: Path) -> None:
    found = 0
    for slide in plan(SEED, PATIENTS):
        text = (small_cohort / "truth" / f"{slide.slide_id}.geojson").read_text()
        collection = json.loads(text)
        assert collection["type"] == "FeatureCollection"
        for feature in collection["features"]:
            polygon = shape(feature["geometry"])
            assert polygon.is_valid
            assert polygon.area > 0
            x0, y0, x1, y1 = polygon.bounds
            assert 0 <= x0 < x1 <= SIDE_PX
            assert 0 <= y0 < y1 <= SIDE_PX
            assert feature["properties"]["classification"]["name"] == "tumor"
            found += 1
        assert bool(collection["features"]) == (slide.fault != "empty")
    assert found >= len(plan(SEED, PATIENTS)) - 1


def test_tumour_cells_are_inside_the_polygons(small_cohort: Path) -> None:
    slide = plan(SEED, PATIENTS)[0]
    scene = draw_scene(slide, SEED, SIDE_PX)
    text = (small_cohort / "truth" / f"{slide.slide_id}.geojson").read_text()
    polygons = [shape(feature["geometry"]).buffer(10) for feature in json.loads(text)["features"]]
    cells = np.flatnonzero(scene.kind == TUMOUR_CELL)
    inside = [any(p.contains(Point(scene.x[i], scene.y[i])) for p in polygons) for i in cells]
    assert np.mean(inside) > 0.97


def test_label_maps_are_at_8_um_and_agree_with_the_scene(small_cohort: Path) -> None:
    for slide in plan(SEED, PATIENTS):
        with np.load(small_cohort / "truth" / f"{slide.slide_id}.npz") as maps:
            assert set(maps) == {"tissue", "tumour", "fat", "pen", "out_of_focus"}
            assert all(maps[key].shape == (SIDE_PX // 16,) * 2 for key in maps)
            assert not (maps["tumour"] & ~maps["tissue"] & 1).any()
            assert maps["tissue"].any() == (slide.fault != "empty")
            assert maps["pen"].any() == (slide.artefact == "pen")
            assert maps["out_of_focus"].any() == (slide.artefact == "out-of-focus")


def test_morphology_distinguishes_tumour_tiles() -> None:
    slide = plan(SEED, PATIENTS)[0]
    scene = draw_scene(slide, SEED, 1536)
    tumour = label_maps(scene, slide, SEED)["tumour"].reshape(12, 8, 12, 8).mean(axis=(1, 3))
    row, column = np.nonzero((tumour > 0.95) | (tumour < 0.05))
    x = morphology(SEED, PATIENTS, slide.slide_id, column * 128, row * 128, 128, side_px=1536)
    assert x.shape == (len(row), len(FEATURES))
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    label, large = tumour[row, column] > 0.5, x[:, FEATURES.index("area_p90")]
    has_nuclei = x[:, 0] > 0
    assert np.median(large[has_nuclei & label]) > 1.5 * np.median(large[has_nuclei & ~label])


def test_morphology_of_no_tiles_is_empty_and_of_glass_is_zero() -> None:
    nothing = morphology(SEED, PATIENTS, "a-001-1", np.array([]), np.array([]), 128, SIDE_PX)
    assert nothing.shape == (0, len(FEATURES))
    glass = morphology(SEED, PATIENTS, "b-002-2", np.array([0]), np.array([0]), 128, SIDE_PX)
    assert not glass.any()


def test_morphology_of_an_unknown_slide_is_an_error() -> None:
    with pytest.raises(KeyError, match="z-001-1"):
        morphology(SEED, PATIENTS, "z-001-1", np.array([0]), np.array([0]), 128)


def test_the_fixture_slide_has_tumour() -> None:
    assert (draw_scene(plan(SEED, PATIENTS)[0], SEED, SIDE_PX).region == TUMOUR).any()
