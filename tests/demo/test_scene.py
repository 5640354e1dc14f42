from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from stainssl.demo.plan import plan
from stainssl.demo.scene import (
    BENIGN,
    EPITHELIUM,
    GLASS,
    LYMPHOCYTE,
    LYMPHOID,
    STROMA,
    TUMOUR,
    TUMOUR_CELL,
    Scene,
    draw_scene,
)  # fmt: skip

SLIDE = next(s for s in plan(1) if s.slide_id == "c-001-1")
SIDE_PX = 1536


@pytest.fixture(scope="module")
def scene() -> Scene:
    return draw_scene(replace(SLIDE, tumour_share=0.45, her2=0, response=0), 1, SIDE_PX)


def _area(scene: Scene, kind: int) -> np.ndarray:
    chosen = scene.kind == kind
    return np.pi * scene.long[chosen] * scene.short[chosen]


def test_the_scene_of_a_slide_is_reproducible(scene: Scene) -> None:
    again = draw_scene(replace(SLIDE, tumour_share=0.45, her2=0, response=0), 1, SIDE_PX)
    for field in fields(Scene):
        np.testing.assert_array_equal(getattr(scene, field.name), getattr(again, field.name))


def test_the_scene_does_not_depend_on_the_stain(scene: Scene) -> None:
    other = next(s for s in plan(1) if s.site == "a").site_parameters
    changed = replace(SLIDE, tumour_share=0.45, her2=0, response=0, site_parameters=other)
    np.testing.assert_array_equal(scene.x, draw_scene(changed, 1, SIDE_PX).x)


def test_tumour_has_the_requested_share_of_the_tissue(scene: Scene) -> None:
    assert (scene.region == TUMOUR).sum() / (scene.region != GLASS).sum() == pytest.approx(
        0.45, abs=0.01
    )


def test_nuclei_are_on_tissue_and_do_not_overlap(scene: Scene) -> None:
    assert ((scene.x >= 0) & (scene.x < SIDE_PX) & (scene.y >= 0) & (scene.y < SIDE_PX)).all()
    cell = (scene.y // 8).astype(int), (scene.x // 8).astype(int)
    assert (scene.region[cell] != GLASS).mean() > 0.97
    distance = cKDTree(np.column_stack([scene.x, scene.y])).query(
        np.column_stack([scene.x, scene.y]), k=2
    )[0][:, 1]
    assert (distance > 0.7 * np.sqrt(scene.long * scene.short)).all()


def test_tumour_nuclei_are_larger_and_more_irregular_than_benign_ones(scene: Scene) -> None:
    assert np.median(_area(scene, TUMOUR_CELL)) > 1.7 * np.median(_area(scene, EPITHELIUM))
    outline = np.sqrt((scene.outline[:, :, 0] ** 2).sum(axis=1))
    tumour, benign = (np.median(outline[scene.kind == k]) for k in (TUMOUR_CELL, EPITHELIUM))
    assert tumour > 1.5 * benign


def test_total_nuclear_area_does_not_distinguish_tumour() -> None:
    total = dict.fromkeys((STROMA, BENIGN, LYMPHOID, TUMOUR), 0.0)
    cells = dict.fromkeys(total, 0)
    for seed in range(4):
        scene = draw_scene(SLIDE, seed, SIDE_PX)
        at = scene.region[(scene.y // 8).astype(int), (scene.x // 8).astype(int)]
        for region in total:
            inside = at == region
            total[region] += float((np.pi * scene.long * scene.short)[inside].sum())
            cells[region] += int((scene.region == region).sum()) * 64
    share = {region: total[region] / cells[region] for region in total}
    assert all(share[r] == pytest.approx(share[TUMOUR], rel=0.3) for r in share)


def test_her2_enlarges_tumour_nuclei_and_response_adds_lymphocytes() -> None:
    base = replace(SLIDE, tumour_share=0.45, her2=0, response=0)
    plain = draw_scene(base, 1, SIDE_PX)
    her2 = draw_scene(replace(base, her2=1), 1, SIDE_PX)
    response = draw_scene(replace(base, response=1), 1, SIDE_PX)
    assert _area(her2, TUMOUR_CELL).mean() > 1.15 * _area(plain, TUMOUR_CELL).mean()

    def lymphocytes(scene: Scene) -> int:
        at = scene.region[(scene.y // 8).astype(int), (scene.x // 8).astype(int)]
        return int(((at == TUMOUR) & (scene.kind == LYMPHOCYTE)).sum())

    assert lymphocytes(response) > 3 * lymphocytes(plain)


def test_an_empty_slide_has_no_tissue_and_no_nuclei() -> None:
    empty = draw_scene(replace(SLIDE, fault="empty"), 1, 768)
    assert not empty.region.any()
    assert not len(empty.x)


@pytest.mark.parametrize("side_px", [0, -256, 700])
def test_a_side_that_is_not_a_multiple_of_256_is_refused(side_px: int) -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        draw_scene(SLIDE, 0, side_px)
