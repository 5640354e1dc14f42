from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stainssl.demo.plan import plan
from stainssl.demo.render import blur_map, concentrations, pen_map, render, transmit
from stainssl.demo.scene import GLASS, TUMOUR, draw_scene
from stainssl.demo.sites import SITES

SLIDE = next(s for s in plan(1) if s.slide_id == "c-001-1")
SIDE_PX = 768


def test_transmitted_light_follows_beer_lambert(rng: np.random.Generator) -> None:
    stain = np.ones((16, 16, 2), np.float32) * rng.uniform(0.1, 1.0, 2).astype(np.float32)
    for site in SITES.values():
        od = stain[0, 0] * site.strength @ np.array([site.hematoxylin, site.eosin])
        np.testing.assert_allclose(transmit(stain, site)[8, 8], np.exp(-od), rtol=2e-3)


def test_empty_glass_has_the_white_of_the_site() -> None:
    slide = replace(SLIDE, fault="empty")
    image = render(draw_scene(slide, 1, SIDE_PX), slide, 1)
    median = np.median(image.reshape(-1, 3), axis=0)
    np.testing.assert_allclose(median, slide.site_parameters.white, atol=1.0)


def test_the_same_scene_at_two_sites_differs_only_in_color() -> None:
    scene = draw_scene(SLIDE, 1, SIDE_PX)
    other = replace(SLIDE, site_parameters=SITES["a"])
    np.testing.assert_array_equal(concentrations(scene, SLIDE, 1), concentrations(scene, other, 1))
    difference = render(scene, SLIDE, 1).astype(int) - render(scene, other, 1)
    tissue = np.repeat(np.repeat(scene.region != GLASS, 8, 0), 8, 1)
    assert np.abs(difference[tissue].mean(axis=0)).max() > 5


@pytest.mark.parametrize("stain", [0, 1])
def test_mean_concentrations_do_not_distinguish_tumour(stain: int) -> None:
    means: list[list[float]] = []
    for seed in range(3):
        scene = draw_scene(replace(SLIDE, tumour_share=0.5), seed, 1536)
        maps = concentrations(scene, SLIDE, seed)[..., stain]
        cells = maps.reshape(192, 8, 192, 8).mean(axis=(1, 3))
        inside, outside = scene.region == TUMOUR, (scene.region > GLASS) & (scene.region != TUMOUR)
        outside &= scene.region != 2
        means.append([cells[inside].mean(), cells[outside].mean()])
    tumour, rest = np.mean(means, axis=0)
    assert tumour == pytest.approx(rest, rel=0.12)


def test_pen_and_blur_are_drawn_only_on_slides_with_that_artefact() -> None:
    assert not pen_map(SLIDE, 1, SIDE_PX).any()
    assert not blur_map(SLIDE, 1, SIDE_PX).any()
    assert pen_map(replace(SLIDE, artefact="pen"), 1, SIDE_PX).any()
    band = blur_map(replace(SLIDE, artefact="out-of-focus"), 1, SIDE_PX)
    assert 0 < (band > 0.5).mean() < 0.3


def test_the_out_of_focus_band_is_less_sharp() -> None:
    slide = replace(SLIDE, artefact="out-of-focus")
    scene = draw_scene(slide, 1, SIDE_PX)
    rows = np.repeat(blur_map(slide, 1, SIDE_PX) == 1, 8)
    sharp, blurred = render(scene, SLIDE, 1)[rows], render(scene, slide, 1)[rows]
    assert (
        np.diff(blurred.astype(float), axis=1).std()
        < 0.6 * np.diff(sharp.astype(float), axis=1).std()
    )
