from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stainssl.demo import sites
from stainssl.demo.sites import SITES, Site, distance, site


def macenko(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stain vectors (2, 3), hematoxylin first, and strengths (2,) of pixels (n, 3)."""
    od = -np.log((rgb + 1.0) / 256.0)
    dense = od[(od > 0.15).all(axis=1)]
    _, axes = np.linalg.eigh(np.cov(dense.T))
    plane = axes[:, 1:] * np.sign(axes[:, 1:].sum(axis=0))
    first, second = (dense @ plane).T
    ends = np.percentile(np.arctan2(second, first), [1, 99])
    vectors = np.stack([plane @ [np.cos(end), np.sin(end)] for end in ends])
    vectors = vectors[np.argsort(-vectors[:, 0])]
    concentration = np.linalg.lstsq(vectors.T, od.T, rcond=None)[0]
    return vectors, np.percentile(concentration, 99, axis=1)


@pytest.fixture(scope="module")
def real_range(real_data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Smallest and largest value over the centres, re-estimated from the tiles."""
    rows: dict[str, list[np.ndarray]] = {"vectors": [], "strength": [], "white": []}
    for centre in range(5):
        paths = sorted((real_data / "camelyon17-centres").glob(f"centre_{centre}_*.png"))
        tiles = [np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3) for path in paths]
        vectors, strength = macenko(np.concatenate(tiles).astype(float))
        rows["vectors"].append(vectors)
        rows["strength"].append(strength)
        rows["white"].append(np.max([np.percentile(t, 99.5, axis=0) for t in tiles], axis=0))
    return {key: (np.min(v, axis=0), np.max(v, axis=0)) for key, v in rows.items()}


def _inside(value: object, bounds: tuple[np.ndarray, np.ndarray]) -> bool:
    return bool(np.all((bounds[0] - 1e-3 <= value) & (value <= bounds[1] + 1e-3)))


def test_the_constants_agree_with_the_real_tiles(
    real_range: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    constants = np.array([sites.HEMATOXYLIN_RANGE, sites.EOSIN_RANGE]).swapaxes(0, 1)
    np.testing.assert_allclose(constants, real_range["vectors"], atol=2e-3)
    np.testing.assert_allclose(sites.STRENGTH_RANGE, real_range["strength"], atol=2e-3)
    np.testing.assert_allclose(sites.WHITE_RANGE, real_range["white"], atol=0.5)


@pytest.mark.parametrize("name", ["a", "b", "c", "d", "e"])
def test_every_site_is_within_the_real_range(
    name: str, real_range: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    one = site(name, seed=11)
    assert _inside(np.array([one.hematoxylin, one.eosin]), real_range["vectors"])
    assert _inside(np.array(one.strength), real_range["strength"])
    assert _inside(np.array(one.white), real_range["white"])


def _check_scanner(one: Site) -> None:
    for value, (low, high) in (
        (one.gamma, sites.GAMMA_RANGE),
        (one.blur_px, sites.BLUR_RANGE_PX),
        (one.jpeg_quality, sites.JPEG_QUALITY_RANGE),
    ):
        assert low <= value <= high
    for vector in (one.hematoxylin, one.eosin):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=2e-3)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(["d", "e", "f", "lab2"]))
def test_drawn_sites_are_farther_from_a_and_b_than_these_from_each_other(
    seed: int, name: str
) -> None:
    one = site(name, seed)
    _check_scanner(one)
    assert one == site(name, seed)
    between_a_and_b = distance(SITES["a"], SITES["b"])
    assert min(distance(one, SITES["a"]), distance(one, SITES["b"])) > between_a_and_b


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_fixed_sites_differ_from_each_other(name: str) -> None:
    _check_scanner(SITES[name])
    for other in set(SITES) - {name}:
        assert distance(SITES[name], SITES[other]) > 0.2
        assert SITES[name].jpeg_quality != SITES[other].jpeg_quality
        assert SITES[name].gamma != SITES[other].gamma
        assert SITES[name].blur_px != SITES[other].blur_px


def test_the_test_site_is_farther_from_the_training_sites_than_these_from_each_other() -> None:
    between_a_and_b = distance(SITES["a"], SITES["b"])
    assert min(distance(SITES["c"], SITES[name]) for name in "ab") > between_a_and_b
