"""Stain and scanner of each synthetic site, within the range of real sites."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

# Minimum and maximum over the five CAMELYON17 centres (three 512x512 tiles of each, pooled).
# Stain vectors and strengths: Macenko per centre with OD = -ln((I + 1) / 256), pixels with any
# channel below 0.15 dropped, 1st and 99th percentile of the angle, 99th percentile of each
# concentration. White: the largest 99.5th percentile of each channel among a centre's tiles.
# `real_range` in tests/demo/test_sites.py re-estimates them.
HEMATOXYLIN_RANGE = ((0.519, 0.651, 0.269), (0.693, 0.756, 0.398))
EOSIN_RANGE = ((0.210, 0.826, 0.189), (0.324, 0.950, 0.499))
STRENGTH_RANGE = ((1.121, 0.876), (2.637, 1.715))
WHITE_RANGE = ((251.0, 220.0, 238.0), (255.0, 255.0, 255.0))
# Cannot be estimated from tiles alone: usual settings of scanners.
GAMMA_RANGE = (0.90, 1.15)
BLUR_RANGE_PX = (0.40, 0.95)
JPEG_QUALITY_RANGE = (75, 90)


@dataclass(frozen=True)
class Site:
    """Stain and scanner of one site.

    Attributes:
        hematoxylin, eosin: unit vectors in OD space (natural logarithm), RGB.
        strength: 99th percentile of the concentrations of H and E in tissue.
        white: RGB of bare glass, 0-255.
        gamma: exponent applied to the transmitted light.
        blur_px: standard deviation of the optical blur in level-0 px.
        jpeg_quality: JPEG quality of all levels of the slide.
    """

    hematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    strength: tuple[float, float]
    white: tuple[float, float, float]
    gamma: float
    blur_px: float
    jpeg_quality: int

    def as_dict(self) -> dict[str, object]:
        """The parameters as JSON-ready values."""
        return asdict(self)


SITES = {
    "a": Site(
        (0.618, 0.706, 0.346), (0.291, 0.897, 0.332), (2.15, 1.40), (253, 240, 248), 1.0, 0.5, 84
    ),
    "b": Site(
        (0.664, 0.683, 0.305), (0.312, 0.908, 0.279), (1.45, 1.05), (252, 230, 243), 1.06, 0.7, 80
    ),
    "c": Site(
        (0.536, 0.749, 0.390), (0.228, 0.850, 0.475), (2.35, 1.50), (255, 252, 245), 0.93, 0.85, 76
    ),
}


def _coordinates(site: Site) -> np.ndarray:
    """(11,) float64 parameters of a site, scaled so that the real range is 0 to 1."""
    value = np.concatenate([site.hematoxylin, site.eosin, np.log(site.strength), site.white])
    low, high = (
        np.concatenate(
            [HEMATOXYLIN_RANGE[i], EOSIN_RANGE[i], np.log(STRENGTH_RANGE[i]), WHITE_RANGE[i]]
        )
        for i in (0, 1)
    )
    return (value - low) / (high - low)


def distance(one: Site, other: Site) -> float:
    """Root mean square distance of two sites' stain and white, in units of the real range."""
    return float(np.sqrt(np.mean((_coordinates(one) - _coordinates(other)) ** 2)))


def _draw_vector(
    rng: np.random.Generator, bounds: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[float, float, float]:
    """Draw a unit vector with all components within `bounds`."""
    while True:
        vector = rng.uniform(bounds[0], bounds[1])
        vector /= np.linalg.norm(vector)
        if np.all(vector >= bounds[0]) and np.all(vector <= bounds[1]):
            return tuple(vector.round(4).tolist())


def _draw(rng: np.random.Generator) -> Site:
    low, high = np.log(STRENGTH_RANGE[0]), np.log(STRENGTH_RANGE[1])
    return Site(
        hematoxylin=_draw_vector(rng, HEMATOXYLIN_RANGE),
        eosin=_draw_vector(rng, EOSIN_RANGE),
        strength=tuple(np.exp(rng.uniform(low, high)).round(3).tolist()),
        white=tuple(rng.uniform(*WHITE_RANGE).round(1).tolist()),
        gamma=round(float(rng.uniform(*GAMMA_RANGE)), 3),
        blur_px=round(float(rng.uniform(*BLUR_RANGE_PX)), 3),
        jpeg_quality=int(rng.integers(JPEG_QUALITY_RANGE[0], JPEG_QUALITY_RANGE[1] + 1)),
    )


def site(name: str, seed: int) -> Site:
    """Return the parameters of site `name`.

    `a`, `b` and `c` are constants. Any other site is drawn from the seed within the real range,
    and redrawn until it is farther from `a` and from `b` than these are from each other.
    """
    if name in SITES:
        return SITES[name]
    rng = np.random.default_rng([seed, *name.encode()])
    apart = distance(SITES["a"], SITES["b"])
    while True:
        drawn = _draw(rng)
        if min(distance(drawn, SITES["a"]), distance(drawn, SITES["b"])) > apart:
            return drawn
