"""Nearest tiles of other slides by the cosine of their embeddings, by site."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stainssl.cohort import parts
from stainssl.errors import StainsslError
from stainssl.stores.embeddings import Embeddings, open_embeddings
from stainssl.view.handles import LRUCache
from stainssl.view.records import Json, Records, json_column, versions

MAX_BYTES = 128 << 20  # of one encoder's vectors that are searched
MAX_A_SLIDE = 2  # neighbors shown per slide, since adjacent tiles are redundant
SHOWN = 6  # neighbors shown per site
CHUNK_ROWS = 16_384
Place = tuple[str, pd.DataFrame, Path]  # cohort, rows of one of its parts, store of its vectors


@dataclass(frozen=True)
class VectorSample:
    """Sample of an encoder's vectors to search.

    Attributes:
        vectors: (N, D) float16, of length 1.
        place: N rows with `cohort`, `slide_id`, `patient_id`, `site`, `tile`.
        total: number of tiles sampled from.
    """

    vectors: np.ndarray
    place: pd.DataFrame
    total: int


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors (n, D) to length 1, as float32."""
    wide = vectors.astype(np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def _cosines(vectors: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Multiply (N, D) float16 by (D,) in blocks, to (N,) float32."""
    starts = range(0, len(vectors), CHUNK_ROWS)
    return np.concatenate([vectors[s : s + CHUNK_ROWS].astype(np.float32) @ one for s in starts])


class Neighbors:
    """Search for nearest tiles in all cohorts that an encoder has embedded.

    If the vectors exceed `MAX_BYTES`, every n-th tile is searched.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._samples: LRUCache[VectorSample] = LRUCache(
            2 * MAX_BYTES, lambda one: one.vectors.nbytes
        )

    def of(self, cohort: str, slide: str, encoder: str, tile: int) -> Json:
        """Return the `SHOWN` nearest tiles of other slides for each site, by cosine.

        Raises:
            KeyError: unknown slide, or the encoder has no embeddings of the cohort.
            StainsslError: the tile has no embedding, or embeddings cannot be read.
        """
        if encoder not in self._records.encoders(cohort):
            raise KeyError(encoder)
        own = unit(self._vector(cohort, slide, encoder, tile)[None])[0]
        sample = self._searched(encoder)
        cosine = _cosines(sample.vectors, own)
        found = sample.place.assign(cosine=cosine)
        found = found[(found["slide_id"] != slide) | (found["cohort"] != cohort)]
        best = nearest_by_site(found)
        return {
            "searched": len(sample.vectors),
            "total": sample.total,
            "columns": {name: json_column(best[name]) for name in best},
        }

    def median_cosine(self, encoder: str, vector: np.ndarray) -> float | None:
        """Return the median cosine of a unit vector (D,) to an encoder's sampled tiles.

        Returns:
            Rounded to 4 digits; None if the encoder has no embeddings.

        Raises:
            StainsslError: no embeddings can be read.
        """
        if not list(self._stores(encoder)):
            return None
        sample = self._searched(encoder)
        return float(f"{np.median(_cosines(sample.vectors, vector)):.4g}")

    def _searched(self, encoder: str) -> VectorSample:
        stores = list(self._stores(encoder))
        stamp = encoder, versions(path for _, _, path in stores)
        return self._samples.get(stamp, lambda: _sampled(stores))

    def _vector(self, cohort: str, slide: str, encoder: str, tile: int) -> np.ndarray:
        part = self._records.part(cohort, slide)
        store = self._store(cohort, encoder, part)
        rows = store.rows(slide)
        at = np.flatnonzero((store.tile[rows] == tile) & store.valid[rows])
        if not len(at):
            raise StainsslError(f"Tile {tile} of {slide} has no embedding by {encoder}.")
        row = rows.start + int(at[0])
        return store.read(slice(row, row + 1))[0]

    def _store(self, cohort: str, encoder: str, part: str) -> Embeddings:
        return open_embeddings(self._records.paths.embeddings(cohort, encoder, part))

    def _stores(self, encoder: str) -> Iterator[Place]:
        for cohort in self._records.readable():
            if encoder not in self._records.encoders(cohort):
                continue
            for part, sheet in parts(self._records.config, cohort).items():
                path = self._records.paths.embeddings(cohort, encoder, part)
                if path.exists():
                    yield cohort, sheet, path


def _sampled(places: Sequence[Place]) -> VectorSample:
    stores = list(_opened(places))
    if not stores:
        raise StainsslError("No embeddings can be read.")
    total = sum(len(store) for _, _, store in stores)
    dim = stores[0][2].features.shape[1]
    step = max(1, -(-total * dim * 2 // MAX_BYTES))
    drawn = [_drawn(*store, step) for store in stores]
    vectors = np.concatenate([v for v, _ in drawn])
    return VectorSample(vectors, pd.concat([p for _, p in drawn], ignore_index=True), total)


def _opened(places: Sequence[Place]) -> Iterator[tuple[str, pd.DataFrame, Embeddings]]:
    for cohort, sheet, path in places:
        try:
            yield cohort, sheet, open_embeddings(path)
        except StainsslError:
            continue  # incomplete run: search the parts that exist


def _drawn(
    cohort: str, sheet: pd.DataFrame, store: Embeddings, step: int
) -> tuple[np.ndarray, pd.DataFrame]:
    rows = np.arange(0, len(store), step)
    rows = rows[store.valid[rows]]
    vectors = unit(store.read(slice(0, len(store)))[rows]).astype(np.float16)
    slide = np.searchsorted(store.start, rows, side="right") - 1
    place = pd.DataFrame(
        {
            "cohort": cohort,
            "slide_id": np.asarray(store.slide_id, object)[slide],
            "tile": store.tile[rows],
        }
    )
    rows = sheet[["slide_id", "patient_id", "site"]]
    return vectors, place.merge(rows, on="slide_id", how="left")


def nearest_by_site(found: pd.DataFrame) -> pd.DataFrame:
    """Select rows of highest `cosine`, at most 2 per slide and 6 per site, sorted by site."""
    ordered = found.sort_values("cosine", ascending=False, kind="stable")
    few = ordered[ordered.groupby(["cohort", "slide_id"]).cumcount() < MAX_A_SLIDE]
    best = few[few.groupby("site").cumcount() < SHOWN]
    return best.sort_values(["site", "cosine"], ascending=[True, False], kind="stable")
