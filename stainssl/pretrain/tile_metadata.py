"""Metadata of the training tiles: stain profiles, patients, sites and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from stainssl.errors import StainsslError
from stainssl.pretrain.monitoring import Codes
from stainssl.stain import StainProfile
from stainssl.stores.pixels import Pixels


def profiles(stores: Sequence[Pixels], method: str, *, slides: bool = True) -> StainProfile:
    """Stain profiles of the N tiles of several pixel stores, in their order.

    Args:
        stores: pixel stores.
        method: of the profiles.
        slides: whether a tile without a valid profile gets that of its slide.

    Raises:
        StainsslError: a store has no profiles of the method, or no tile has a valid one.
    """
    found = StainProfile.cat([_profiles(store, method, slides) for store in stores])
    if not bool(found.valid.any()):
        raise StainsslError(
            f"None of the {len(found)} training tiles has a valid {method} profile: are they "
            "H&E? Try normalizer: reinhard, or check the previews of the tiles."
        )
    return found


def _profiles(store: Pixels, method: str, slides: bool) -> StainProfile:
    of_tiles, of_slides = store.profile(method), store.pooled(method)
    if not of_tiles or not of_slides:
        if not len(store):
            return StainProfile.reference(method).batched()[:0]
        raise StainsslError(
            f"The stored pixels of the training parts have no {method} profiles (found: "
            f"{', '.join(store.profile_methods()) or 'none'}). Make the pixels again."
        )
    own = StainProfile.from_arrays(method, of_tiles)
    if not slides:
        return own
    pooled = StainProfile.from_arrays(method, of_slides)
    return own.where_valid(pooled[torch.from_numpy(store.slide).long()])


def codes(words: pd.Series) -> Codes:
    """(N,) int32 codes of words, numbered in alphabetical order; −1 for empty ones."""
    names = sorted(set(words) - {""})
    return words.map({name: i for i, name in enumerate(names)}).fillna(-1).to_numpy(np.int32)


def of_tiles(values: npt.NDArray[Any], stores: Sequence[Pixels]) -> npt.NDArray[Any]:
    """Expand values per slide to values per tile.

    Args:
        values: (S,) of the slides of all stores, in order.
        stores: pixel stores of N tiles.

    Returns:
        (N,) of the same dtype.
    """
    first = np.cumsum([0] + [len(store.slide_id) for store in stores])
    parts = [values[a + store.slide] for a, store in zip(first[:-1], stores, strict=True)]
    return np.concatenate(parts)


def names_of(words: Sequence[str], stores: Sequence[Pixels]) -> Callable[..., list[str]]:
    """Return a function from (n,) tile numbers to the words of their slides.

    Args:
        words: one per slide of all stores, in order; not copied for every tile.
        stores: pixel stores.
    """
    slide = of_tiles(np.arange(len(words), dtype=np.int32), stores)

    def names(tiles: npt.NDArray[np.int64]) -> list[str]:
        return [words[i] for i in slide[tiles].tolist()]

    return names


def labels(stores: Sequence[Pixels], tables: Sequence[pd.DataFrame], label: str) -> Codes:
    """(N,) int32 class of each tile in alphabetical order of classes; −1 if unknown.

    Args:
        stores: pixel stores of the N tiles.
        tables: one per store, with `slide_id`, `tile` and one column per label.
        label: name of the column.

    Raises:
        StainsslError: a table has no such column, or fewer than two classes are known.
    """
    pairs = zip(stores, tables, strict=True)
    words = pd.concat([_words(store, table, label) for store, table in pairs], ignore_index=True)
    found = codes(words)
    if len(set(found.tolist()) - {-1}) < 2:
        raise StainsslError(
            f"The training tiles have fewer than two classes of {label!r}: supervision needs two. "
            "Check the annotations, or leave `label` out."
        )
    return found


def _words(store: Pixels, table: pd.DataFrame, label: str) -> pd.Series:
    if label not in table:
        raise StainsslError(
            f"The tile labels of the training parts have no {label!r}; they have "
            f"{', '.join(str(c) for c in table if c not in ('slide_id', 'tile')) or 'none'}."
        )
    slide = np.asarray(store.slide_id, dtype=object)[store.slide]
    keys = pd.DataFrame({"slide_id": slide, "tile": store.tile})
    found = keys.merge(table[["slide_id", "tile", label]], on=["slide_id", "tile"], how="left")
    return found[label].astype(object).where(found[label].notna(), "").map(str)
