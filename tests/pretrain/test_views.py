"""Random views: random numbers, crops and color jitter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stainssl.pretrain.views import (
    COLORS,
    Color,
    ViewGeometry,
    apply_color,
    apply_geometry,
    draw_color,
    draw_geometry,
    generator,
)

IMAGES = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(5))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), step=st.integers(0, 2**40), stream=st.integers(0, 2))
def test_random_numbers_depend_on_seed_step_and_stream_only(seed, step, stream):
    drawn = torch.rand(4, generator=generator(seed, step, stream))
    assert torch.equal(drawn, torch.rand(4, generator=generator(seed, step, stream)))
    for other in ((seed + 1, step, stream), (seed, step + 1, stream), (seed, step, stream + 1)):
        assert not torch.equal(drawn, torch.rand(4, generator=generator(*other)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_crops_lie_within_the_tile(seed):
    theta = draw_geometry(16, torch.Generator().manual_seed(seed))
    reach = theta[:, :, :2].abs().sum(2) + theta[:, :, 2].abs()
    assert float(reach.max()) <= 1 + 1e-5


def test_every_symmetry_of_the_square_is_drawn():
    theta = draw_geometry(400, torch.Generator().manual_seed(0))[:, :, :2]
    assert len({tuple(row) for row in theta.sign().flatten(1).tolist()}) == 8


def test_geometry_has_the_given_area_ratio_and_orientation():
    still = ViewGeometry(area=(0.25, 0.25), ratio=(1, 1), turns=False)
    theta = draw_geometry(50, torch.Generator().manual_seed(0), still)
    torch.testing.assert_close(theta[:, :, :2], 0.5 * torch.eye(2).expand(50, 2, 2))


def test_the_identity_returns_the_tile():
    seen = apply_geometry(IMAGES, torch.eye(2, 3).expand(6, 2, 3), 40)
    torch.testing.assert_close(seen, IMAGES, atol=1e-5, rtol=0)


def test_a_much_larger_tile_is_averaged():
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    seen = apply_geometry(stripes, torch.eye(2, 3)[None], 16)
    torch.testing.assert_close(seen, torch.full_like(seen, 0.5))


def _jittered(images, color, seed=0):
    return apply_color(images, draw_color(color, len(images), torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("color", [name for name in COLORS if COLORS[name]])
def test_jitter_stays_in_range_and_is_reproducible(color):
    once, again = (_jittered(IMAGES, COLORS[color], 3) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == IMAGES.shape
    assert 0 <= float(once.min()) <= float(once.max()) <= 1


@pytest.mark.parametrize("color", [name for name in COLORS if COLORS[name]])
def test_rows_of_a_draw_give_the_same_rows_of_the_result(color):
    drawn = draw_color(COLORS[color], 6, torch.Generator().manual_seed(1))
    part = apply_color(IMAGES[2:5], drawn.rows(slice(2, 5)))
    torch.testing.assert_close(part, apply_color(IMAGES, drawn)[2:5], atol=1e-6, rtol=0)


def test_zero_strength_does_not_change_the_images():
    torch.testing.assert_close(_jittered(IMAGES, Color(0, 0, 0, 0)), IMAGES, atol=1e-5, rtol=0)


def test_each_image_has_its_own_jitter():
    same = IMAGES[:1].expand(6, 3, 40, 40)
    seen = _jittered(same, Color(0.4, 0.4, 0.4, 0.1, jitter=1))
    assert float(seen.std(0).mean()) > 0.01


def test_grey_solarisation_and_blur():
    grey = _jittered(IMAGES, Color(0, 0, 0, 0, grey=1))
    torch.testing.assert_close(grey[:, 0], grey[:, 2], atol=1e-3, rtol=0)
    light = _jittered(IMAGES, Color(0, 0, 0, 0, solarise=1))
    assert float(light.max()) <= 0.5 + 1e-6
    blurred = _jittered(IMAGES, Color(0, 0, 0, 0, blur=1))
    assert float(blurred.diff(dim=3).abs().mean()) < float(IMAGES.diff(dim=3).abs().mean())
