"""Bags whose tiles' vectors are less the mean of their site."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stainssl.evaluation.centring import Means, site_means
from stainssl.mil.bags import Bag, SlideTiles
from stainssl.stores.spool import Kept


@dataclasses.dataclass(frozen=True)
class Shifted:
    """An (n, D) array less a (D,) mean, computed of the rows that are asked for."""

    features: np.ndarray | Kept
    mean: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, D)."""
        return self.features.shape

    def __getitem__(self, rows: Any) -> np.ndarray:
        return (self.features[rows].astype(np.float32) - self.mean).astype(np.float16)


def means_of(bags: Sequence[Bag], sites: Mapping[str, str]) -> Means:
    """Site → (D,) mean vector, of the slides of some bags.

    Args:
        bags: of training and validation patients.
        sites: slide → site.
    """
    slides = [slide for bag in bags for slide in bag.slides]
    if not slides:
        return {}
    vectors = np.stack([tiles.moments[0] for bag in bags for tiles in bag.tiles])
    return site_means(vectors, slides, [sites[slide] for slide in slides])


def centred_bags(
    bags: Sequence[Bag], sites: Mapping[str, str], means: Means
) -> tuple[list[Bag], list[str]]:
    """The bags, each slide less the mean of its site, and the slides of sites without a mean.

    Those slides are left out; so is a bag that has no others.
    """
    found = [_centred(bag, sites, means) for bag in bags]
    left_out = [s for bag in bags for s in bag.slides if sites[s] not in means]
    return [bag for bag in found if len(bag)], left_out


def _centred(bag: Bag, sites: Mapping[str, str], means: Means) -> Bag:
    pairs = zip(bag.slides, bag.tiles, strict=True)
    known = [(slide, tiles) for slide, tiles in pairs if sites[slide] in means]
    return dataclasses.replace(
        bag,
        slides=tuple(slide for slide, _ in known),
        tiles=tuple(_less(tiles, means[sites[slide]]) for slide, tiles in known),
    )


def _less(tiles: SlideTiles, mean: np.ndarray) -> SlideTiles:
    assert not isinstance(tiles.features, Shifted)
    return dataclasses.replace(tiles, features=Shifted(tiles.features, mean))
