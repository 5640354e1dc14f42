"""Tile labels from annotations: areas of the classes of a label, and the share of each tile.

All coordinates are in level-0 px.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd
import shapely
from shapely.geometry.base import BaseGeometry

from stainssl.slides.annotation_files import Areas, named

MIN_SHARE = 0.5  # least share of a tile's area for the tile to have a class
LIKENESS = 0.88  # least similarity (difflib) of spelling variants: tumor, tumour, tumors


def is_near(found: str, wanted: str) -> bool:
    """Whether the class `found` may be a variant of the class `wanted`.

    It is if the names differ in case or Unicode form only, if `found` is derived from `wanted`
    (`tumor: Positive`, as in QuPath), or if the spelling is similar.
    """
    one, other = (unicodedata.normalize("NFKC", name).casefold() for name in (found, wanted))
    base = one.split(":")[0].strip()
    return other in (one, base) or difflib.SequenceMatcher(None, one, other).ratio() >= LIKENESS


def near_classes(found: Iterable[str], of: Sequence[str], known: Collection[str]) -> list[str]:
    """Find classes that resemble one of a label, but are not in the config.

    Args:
        found: classes of the annotations.
        of: classes of the label.
        known: classes that the config names, for any label or as something else.

    Returns:
        Class names in alphabetical order.
    """
    unknown = sorted({name for name in found if name} - {named(name) for name in known})
    return [name for name in unknown if any(is_near(name, wanted) for wanted in of)]


def area_of(areas: Areas, of: Sequence[str], without: Sequence[str] = ()) -> list[BaseGeometry]:
    """Select the areas of some classes, and subtract those of others.

    Args:
        areas: `Annotations.areas`.
        of: classes to select.
        without: classes to subtract, e.g. `Exclusion`, or a normal island within a tumour.
    """
    in_of, in_without = ({named(name) for name in names} for names in (of, without))
    wanted = [polygon for name, polygon in areas if name in in_of]
    holes = [polygon for name, polygon in areas if name in in_without]
    if not wanted or not holes:
        return wanted
    return [shapely.union_all(wanted).difference(shapely.union_all(holes))]


def tile_fractions(
    x_level0_px: np.ndarray,
    y_level0_px: np.ndarray,
    side_level0_px: np.ndarray,
    polygons: Sequence[BaseGeometry],
) -> np.ndarray:
    """Share of each tile's area that is covered by polygons.

    Args:
        x_level0_px, y_level0_px, side_level0_px: (n,) top left corners and sides of the tiles.
        polygons: polygons in level-0 px; overlaps count once.

    Returns:
        (n,) float64, 0–1.
    """
    shares = np.zeros(len(x_level0_px))
    if not len(polygons) or not len(shares):
        return shares
    x, y, side = (np.asarray(v, float) for v in (x_level0_px, y_level0_px, side_level0_px))
    tiles = shapely.box(x, y, x + side, y + side)
    union = shapely.union_all(list(polygons))
    shapely.prepare(union)
    inside = shapely.contains_properly(union, tiles)
    shares[inside] = 1.0
    partly = shapely.intersects(union, tiles) & ~inside
    shares[partly] = shapely.area(shapely.intersection(tiles[partly], union)) / side[partly] ** 2
    return np.clip(shares, 0, 1)


def discard_outside(tiles: pd.DataFrame, areas: Areas) -> pd.DataFrame:
    """Discard tiles of which less than half lies within the areas, with the reason `region`.

    Args:
        tiles: tiles of a slide, with the columns `x`, `y`, `side`, `kept` and `reason`.
        areas: areas of any class.

    Returns:
        `tiles` with new `kept` and `reason`; tiles already discarded are unchanged.
    """
    x, y, side = (tiles[name].to_numpy() for name in ("x", "y", "side"))
    outside = tile_fractions(x, y, side, [polygon for _, polygon in areas]) < MIN_SHARE
    out = tiles["kept"] & outside
    return tiles.assign(kept=tiles["kept"] & ~out, reason=tiles["reason"].mask(out, "region"))
