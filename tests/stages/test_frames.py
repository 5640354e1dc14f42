"""Annotations and exports of slides with bounds are in the coordinate frame that each tool uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stainssl.config import Config, parse
from stainssl.export.qupath import tile_objects, write_geojson
from stainssl.slides.annotation_files import read_annotations
from stainssl.slides.annotations import tile_fractions
from stainssl.slides.frames import in_slide, origin_of
from stainssl.slides.readers import open_slide
from stainssl.stages import run_stage
from stainssl.stores.tiles import read_bounds, read_labels, read_tiles
from tests.slides.conftest import TISSUE, write_scn

PART, CORNER, SIZE = "all-0000", (768, 512), (1024, 768)
DRAWN = (256, 128, 768, 640)  # x0, y0, x1, y1 of the outline in px, relative to the bounds


@pytest.fixture
def root(tmp_path: Path, rng: np.random.Generator) -> Path:
    image = np.clip(TISSUE + rng.normal(0, 12, (*SIZE[::-1], 1)), 0, 255).astype(np.uint8)
    image[:, -64:] = 243  # glass
    write_scn(tmp_path / "s.scn", image, CORNER)
    (tmp_path / "slides.csv").write_text("slide_id,patient_id,path\ns,p,s.scn\n")
    return tmp_path


def outline(origin: tuple[int, int] = (0, 0)) -> list[tuple[int, int]]:
    x0, y0, x1, y1 = DRAWN
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    return [(x + origin[0], y + origin[1]) for x, y in corners]


def write_qupath(path: Path, points: list[tuple[int, int]]) -> None:
    geometry = {"type": "Polygon", "coordinates": [points]}
    properties = {"classification": {"name": "tumor"}}
    feature = {"type": "Feature", "geometry": geometry, "properties": properties}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))


def write_asap(path: Path, points: list[tuple[int, int]]) -> None:
    coordinates = "".join(
        f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(points)
    )
    path.write_text(
        '<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="tumor">'
        f"<Coordinates>{coordinates}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )


def config_of(root: Path, **keys: Any) -> Config:
    return parse(
        {
            "results": str(root / "results"),
            "cohorts": {"c": {"sheet": root / "slides.csv", "root": root, **keys}},
            "tilings": {"default": {"size": 128}},
            "tasks": {"t": {"level": "tile", "label": "tumor", "cohorts": ["c"]}},
        }
    )


def kept_tiles(config: Config) -> pd.DataFrame:
    run_stage("tile", config, "c", PART)
    found = read_tiles(config.paths.tiles("c", PART))
    return found[found["kept"]].reset_index(drop=True)


def is_inside(tiles: pd.DataFrame) -> np.ndarray:
    x0, y0, x1, y1 = DRAWN
    x, y, side = tiles["x"] - CORNER[0], tiles["y"] - CORNER[1], tiles["side"]
    return ((x >= x0) & (y >= y0) & (x + side <= x1) & (y + side <= y1)).to_numpy()


def test_the_slide_has_bounds(root: Path) -> None:
    with open_slide(root / "s.scn") as slide:
        assert slide.bounds_level0_px == (*CORNER, *SIZE)


@pytest.mark.parametrize(
    ("suffix", "origin", "words"),
    [
        (".geojson", (0, 0), {}),  # QuPath
        (".xml", CORNER, {}),  # ASAP
        (".geojson", CORNER, {"annotations_frame": "slide"}),  # TRIDENT, CLAM
        (".xml", (0, 0), {"annotations_frame": "bounds"}),
    ],
)
def test_annotations_label_the_tiles_that_they_cover_in_each_frame(
    root: Path, suffix: str, origin: tuple[int, int], words: dict[str, str]
) -> None:
    write = write_qupath if suffix == ".geojson" else write_asap
    write(root / f"s{suffix}", outline(origin))
    config = config_of(root, annotations=str(root / f"{{slide_id}}{suffix}"), **words)
    tiles = kept_tiles(config)
    run_stage("label", config, "c", PART)
    labels = read_labels(config.paths.labels("c", PART))
    assert is_inside(tiles).sum() == 16
    assert np.array_equal(labels["tumor"] == 1, is_inside(tiles))


@pytest.mark.parametrize(("frame", "origin"), [("auto", (0, 0)), ("slide", CORNER)])
def test_regions_keep_the_tiles_that_they_cover_in_each_frame(
    root: Path, frame: str, origin: tuple[int, int]
) -> None:
    write_qupath(root / "s.geojson", outline(origin))
    config = config_of(root, regions=str(root / "{slide_id}.geojson"), regions_frame=frame)
    tiles = kept_tiles(config)
    assert len(tiles) == 16
    assert is_inside(tiles).all()


def test_a_qupath_export_read_back_covers_the_same_tiles(root: Path) -> None:
    config = config_of(root)
    tiles = kept_tiles(config)
    bounds = read_bounds(config.paths.qc("c", PART))["s"]
    x, y, side = (tiles[c].to_numpy() for c in ("x", "y", "side"))
    path = root / "out.geojson"
    write_geojson(path, tile_objects(x, y, side.astype(float), {}, bounds[:2]))
    areas = read_annotations(path).areas
    assert min(area.bounds[0] for _, area in areas) == 0  # QuPath shows only the bounds
    assert max(area.bounds[2] for _, area in areas) <= SIZE[0]
    back = in_slide(areas, origin_of(path, "auto", bounds))
    assert tile_fractions(x, y, side, [area for _, area in back]).min() > 0.999
