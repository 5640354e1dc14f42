"""Site centring of bags: subtract the mean embedding of its site from each slide."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stainssl.evaluation.centring import Means, site_means
from stainssl.mil.bags import Bag, SlideTiles
from stainssl.stores.spool import SpooledArray


@dataclasses.dataclass(frozen=True)
class CentredArray:
    """An (n, D) array minus a (D,) mean, computed for a row when it is read."""

    features: np.ndarray | SpooledArray
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
    """Site → (D,) mean embedding, in which all slides of the site have the same weight.

    Args:
        bags: bags of training and validation patients.
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
    """Subtract the mean embedding of its site from every slide of some bags.

    Returns:
        The centred bags, without slides whose site has no mean and without bags that have no other
        slide; and the ids of the slides left out.
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
    assert not isinstance(tiles.features, CentredArray)
    return dataclasses.replace(tiles, features=CentredArray(tiles.features, mean))
