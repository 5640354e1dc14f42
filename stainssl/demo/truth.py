"""Ground truth of a slide: polygons, label maps, and morphology of nuclei for an oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial import cKDTree

from stainssl.demo.plan import SlidePlan, plan
from stainssl.demo.render import blur_map, pen_map
from stainssl.demo.scene import CELL_PX, FAT, GLASS, TUMOUR, Scene, draw_scene

MAP_PX = 16  # 8 µm
SMALLEST_POLYGON_PX2 = 4096.0
FEATURES = (
    "count", "area_mean", "area_sd", "area_p90", "aspect_mean", "outline_mean", "outline_p90",
    "nearest_mean", "nearest_sd", "crowding", "coverage",
)  # fmt: skip


def _ring(contour: np.ndarray) -> list[list[float]]:
    """Closed ring in level-0 px from a contour (k, 1, 2) in half cells."""
    points = (contour[:, 0].astype(float) + 0.5) * (CELL_PX / 2)
    return [*points.tolist(), points[0].tolist()]


def tumour_polygons(scene: Scene) -> list[list[list[list[float]]]]:
    """Outlines of the tumour as GeoJSON polygons (outer ring, then holes), in level-0 px."""
    mask = cv2.resize((scene.region == TUMOUR).astype(np.float32), None, fx=2, fy=2)
    mask = (cv2.GaussianBlur(mask, (0, 0), 2.0) > 0.5).astype(np.uint8)
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    smooth = [cv2.approxPolyDP(c, 0.8, True) for c in contours]
    large = [
        len(c) >= 4 and cv2.contourArea(c) * (CELL_PX / 2) ** 2 >= SMALLEST_POLYGON_PX2
        for c in smooth
    ]
    polygons = {i: [_ring(c)] for i, c in enumerate(smooth) if large[i] and tree[0, i, 3] < 0}
    for i, c in enumerate(smooth):
        if large[i] and tree[0, i, 3] in polygons:
            polygons[tree[0, i, 3]].append(_ring(c))
    return list(polygons.values())


def geojson(scene: Scene) -> str:
    """GeoJSON of the tumour outlines, in the form of QuPath annotations, in level-0 px."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {"objectType": "annotation", "classification": {"name": "tumor"}},
        }
        for rings in tumour_polygons(scene)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def label_maps(scene: Scene, slide: SlidePlan, seed: int) -> dict[str, np.ndarray]:
    """Masks (side / 16, side / 16) uint8 of 0 and 1 at 8 µm/px, by name."""
    step = MAP_PX // CELL_PX
    region = scene.region[::step, ::step]
    blur = np.broadcast_to(blur_map(slide, seed, scene.side_px)[:, None], scene.region.shape)
    masks = {
        "tissue": region != GLASS,
        "tumour": region == TUMOUR,
        "fat": region == FAT,
        "pen": pen_map(slide, seed, scene.side_px)[::step, ::step] > 0.5,
        "out_of_focus": blur[::step, ::step] > 0.5,
    }
    return {name: mask.astype(np.uint8) for name, mask in masks.items()}


def write_truth(folder: Path, scene: Scene, slide: SlidePlan, seed: int) -> None:
    """Write `<slide_id>.geojson` and `<slide_id>.npz` into `folder`."""
    (folder / f"{slide.slide_id}.geojson").write_text(geojson(scene), encoding="utf-8")
    maps: dict[str, Any] = label_maps(scene, slide, seed)
    np.savez_compressed(folder / f"{slide.slide_id}.npz", **maps)


def _features(scene: Scene, inside: np.ndarray, nearest: np.ndarray, side_px: float) -> np.ndarray:
    """(F,) float32 `FEATURES` of the nuclei `inside`; zeros if there are fewer than two."""
    if len(inside) < 2:
        return np.zeros(len(FEATURES), np.float32)
    area = np.pi * scene.long[inside] * scene.short[inside]
    outline = np.sqrt((scene.outline[inside, :, 0] ** 2).sum(axis=1))
    gap = nearest[inside] / np.sqrt(area / np.pi)
    return np.array(
        [
            len(inside) / side_px**2 * 1e4, area.mean(), area.std(), np.quantile(area, 0.9),
            np.mean(scene.long[inside] / scene.short[inside]), outline.mean(),
            np.quantile(outline, 0.9), nearest[inside].mean(), nearest[inside].std(),
            gap.mean(), area.sum() / side_px**2,
        ],
        np.float32,
    )  # fmt: skip


def morphology(
    seed: int,
    patients: Mapping[str, int],
    slide_id: str,
    x: np.ndarray,
    y: np.ndarray,
    side: np.ndarray | float,
    side_px: int = 3072,
) -> np.ndarray:
    """Size, outline and crowding of the true nuclei of tiles, without kind, region and color.

    Args:
        seed, patients, side_px: as for `stainssl.demo.make`.
        slide_id: a slide of the cohort.
        x, y: (n,) top left corners in level-0 px.
        side: side of the tiles in level-0 px, a number or (n,).

    Returns:
        (n, F) float32, columns `FEATURES`; areas and distances in level-0 px.

    Raises:
        KeyError: the cohort has no such slide.
    """
    slide = {one.slide_id: one for one in plan(seed, patients)}[slide_id]
    scene = draw_scene(slide, seed, side_px)
    x, y = np.asarray(x, float), np.asarray(y, float)
    side = np.broadcast_to(np.asarray(side, float), x.shape)
    out = np.zeros((len(x), len(FEATURES)), np.float32)
    if len(scene.x) < 2 or not len(x):
        return out
    centres = np.column_stack([scene.x, scene.y])
    tree = cKDTree(centres)
    nearest = tree.query(centres, k=2)[0][:, 1]
    middles = np.column_stack([x + side / 2, y + side / 2])
    for i, inside in enumerate(tree.query_ball_point(middles, side / 2, p=np.inf)):
        out[i] = _features(scene, np.asarray(inside, int), nearest, side[i])
    return out
