"""Synthetic bags: a third of the tiles of a positive bag is shifted along some features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stainssl.mil.bags import Bag, SlideTiles, valid_tiles

MakeBag = Callable[..., Bag]
DIM = 16


def _tiles(features: np.ndarray) -> SlideTiles:
    n = len(features)
    index = np.arange(n)
    return valid_tiles(features.astype(np.float16), np.ones(n, bool), index, index * 256, index * 0)


@pytest.fixture
def make_bag(rng: np.random.Generator) -> MakeBag:
    def make(number: int, label: int, n: int = 30, shift: float = 0.0, slides: int = 1) -> Bag:
        pieces = []
        for _ in range(slides):
            features = rng.normal(size=(n, DIM))
            features[: max(n // 3, 1), :4] += shift * label
            pieces.append(_tiles(features))
        return Bag(
            patient_id=f"p{number}",
            slide_id="",
            site="a",
            label=label,
            slides=tuple(f"p{number}-s{k}" for k in range(slides)),
            tiles=tuple(pieces),
        )

    return make


@pytest.fixture
def make_cohort(make_bag: MakeBag) -> Callable[..., list[Bag]]:
    def make(patients: int, shift: float, **options: int) -> list[Bag]:
        return [make_bag(i, i % 2, n=20 + i % 7, shift=shift, **options) for i in range(patients)]

    return make
