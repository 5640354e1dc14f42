"""Areas that people outlined: which classes make a label, and how much of each tile they cover.

Planes: everything is in level-0 px, as all formats here store it.
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

MIN_SHARE = 0.5  # of a tile's area under a class before the tile has it
LIKENESS = 0.88  # of two words that differ in a letter or an ending: tumor, tumour, tumors


def is_near(found: str, wanted: str) -> bool:
    """Whether a person who asks for `wanted` may mean `found`, which is another word.

    It differs in capitals or accents, is derived from it (`tumor: Positive`, as QuPath names it)
    or is spelled nearly so.
    """
    one, other = (unicodedata.normalize("NFKC", name).casefold() for name in (found, wanted))
    base = one.split(":")[0].strip()
    return other in (one, base) or difflib.SequenceMatcher(None, one, other).ratio() >= LIKENESS


def near_classes(found: Iterable[str], of: Sequence[str], known: Collection[str]) -> list[str]:
    """The classes that read like one that is asked for, and are named nowhere in the config.

    Args:
        found: classes of the annotations.
        of: classes that make the label.
        known: classes that the config names for any label, or says to be something else.
    """
    unknown = sorted({name for name in found if name} - {named(name) for name in known})
    return [name for name in unknown if any(is_near(name, wanted) for wanted in of)]


def area_of(areas: Areas, of: Sequence[str], without: Sequence[str] = ()) -> list[BaseGeometry]:
    """The areas of some classes, with those of others cut out of them.

    Args:
        areas: as `read_annotations` gives.
        of: classes that count together.
        without: classes that are cut out, as an `Exclusion` or a normal island in a tumour.
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
    """The share of each tile's area under the union of polygons.

    Args:
        x_level0_px, y_level0_px, side_level0_px: (n,) top left corner and side of the tiles.
        polygons: in level-0 px; overlaps count once.

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


def within(tiles: pd.DataFrame, areas: Areas) -> pd.DataFrame:
    """Tiles of which less than half lies in the areas as not kept, reason `region`.

    Args:
        tiles: a slide's tiles: `x`, `y`, `side`, `kept`, `reason`. One that is not kept already
            keeps its reason.
        areas: of any class.
    """
    x, y, side = (tiles[name].to_numpy() for name in ("x", "y", "side"))
    outside = tile_fractions(x, y, side, [polygon for _, polygon in areas]) < MIN_SHARE
    out = tiles["kept"] & outside
    return tiles.assign(kept=tiles["kept"] & ~out, reason=tiles["reason"].mask(out, "region"))
