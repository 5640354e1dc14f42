"""Robustness without labels: CRoMa of tile against stain, and retrieval across sites."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd

from stainssl.evaluation.geometry import retrieval_hits
from stainssl.evaluation.site_effects import CROMA_TILES
from stainssl.evaluation.stainings import (
    MetricRow,
    Vectors,
    index,
    mean_metric,
    median_metric,
)

log = logging.getLogger(__name__)


def tile_indices(vectors: Vectors, table: pd.DataFrame, seed: int) -> Iterator[MetricRow]:
    """CRoMa and robustness index of tile against stain, by the package `croma`.

    The tile takes the role of the label and the stain that of the site: the nearest image of the
    same tile under another stain is compared with the nearest other tile under the same stain.
    `tile_croma` is the median margin in (-1, 1), above 0 if the tile itself is nearer.
    `tile_robustness_index` is the share of images nearest to the same tile, among those whose
    nearest neighbor is one of the two. Nothing, with the reason in the log, if vectors of
    different tiles are equal.

    Args:
        vectors: (N, D) embeddings of every tile under every stain; at most `CROMA_TILES`, drawn at
            random, are used.
        table: N rows: `name` of the tile, `stain`, `patient_id`.
        seed: random seed of the sample and of the resamples.
    """
    tiles = table["name"].unique()
    count = CROMA_TILES // table["stain"].nunique()
    some = np.random.default_rng(seed).permutation(tiles)[:count]
    kept = table["name"].isin(some).to_numpy()
    try:
        yield from _croma(vectors[kept].astype(np.float64), table[kept], seed)
    except (ValueError, RuntimeError) as error:  # a collapsed encoder
        log.info("tile_croma skipped: %s", error)


def _croma(vectors: Vectors, table: pd.DataFrame, seed: int) -> Iterator[MetricRow]:
    from croma import RI, CRoMa

    rows = np.arange(len(table)).astype(str)
    manifest = pd.DataFrame(
        {
            "sample_id": rows,
            "image_path": "",
            "label": table["name"].to_numpy(),
            "group_id": rows,  # only the image itself is excluded from its neighbors
            "stain": table["stain"].to_numpy(),
        }
    )
    margin = CRoMa.compute(vectors, manifest, confounder_column="stain", m=1)
    patient = table["patient_id"]
    yield median_metric("tile_croma", margin.sample_values_aligned, index(patient), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # low support
        found = RI.compute(vectors, manifest, confounder_column="stain", k_candidates=(1,))
    values = found.sample_values_aligned
    is_defined = np.isfinite(values)
    yield mean_metric("tile_robustness_index", values[is_defined], index(patient[is_defined]), seed)


def shared_tiles(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Site → row indices of the tiles that occur at all sites, in the same order of names.

    Args:
        table: `site` and `name`; names are unique within a site.
    """
    sites = sorted(table["site"].unique())
    named = {s: pd.Series(np.flatnonzero(table["site"] == s)) for s in sites}
    names = {s: pd.Index(table["name"].to_numpy()[rows]) for s, rows in named.items()}
    shared = sorted(set.intersection(*(set(one) for one in names.values())))
    return {s: named[s].to_numpy()[names[s].get_indexer(shared)] for s in sites}


def across_sites(vectors: Vectors, table: pd.DataFrame, seed: int) -> Iterator[MetricRow]:
    """How often a tile is nearest to the same tissue at another site.

    `site_retrieval_top1` is the mean over all pairs of sites; `worst_pair_retrieval_top1` is the
    value of the lowest pair, which is named in `group`.

    Args:
        vectors: (N, D) embeddings of the original tiles.
        table: N rows: `site`, `name`, `patient_id`; tiles of the same name show the same tissue.
        seed: random seed of the resamples.
    """
    rows = shared_tiles(table)
    pairs = list(combinations(rows, 2))
    hits = np.stack([retrieval_hits(vectors[rows[a]], vectors[rows[b]], 1) for a, b in pairs])
    first = next(iter(rows.values()))
    patient = index(table["patient_id"].iloc[first])
    yield mean_metric("site_retrieval_top1", hits.mean(axis=0), patient, seed)
    worst = int(np.argmin(hits.mean(axis=1)))
    lowest = mean_metric("worst_pair_retrieval_top1", hits[worst], patient, seed)
    yield lowest._replace(group="sites=" + " / ".join(pairs[worst]))
