"""Indices of tile against stain for encoders of tissue and encoders of stain."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stainssl.evaluation.geometry import retrieval_hits
from stainssl.evaluation.same_tile import across_sites, shared_tiles, tile_indices

N, D = 60, 16


def _embeddings(rng, *, stain: float, sites: int = 2) -> tuple[np.ndarray, pd.DataFrame]:
    """Embeddings of N tiles at several sites, with a tissue part and a stain part."""
    own, code = rng.normal(size=(N, D)), rng.normal(size=(sites, D))
    vectors = [own + stain * code[s] + 0.05 * rng.normal(size=(N, D)) for s in range(sites)]
    names = [f"t{i:02d}" for i in range(N)]
    parts = [pd.DataFrame({"name": names, "stain": f"s{s}", "site": f"s{s}"}) for s in range(sites)]
    table = pd.concat(parts, ignore_index=True)
    table["patient_id"] = table["name"].str[:2]
    return np.concatenate(vectors).astype(np.float32), table


def _values(metrics) -> dict[str, float]:
    return {row.metric: row.value for row in metrics}


def test_indices_are_high_for_an_encoder_of_tissue_and_low_for_one_of_stain(rng):
    tissue = _values(tile_indices(*_embeddings(rng, stain=0.0), 0))
    stain = _values(tile_indices(*_embeddings(rng, stain=20.0), 0))
    assert tissue["tile_croma"] > 0.5
    assert tissue["tile_robustness_index"] == 1
    assert stain["tile_croma"] < -0.5
    assert stain["tile_robustness_index"] == 0


def test_croma_equals_its_definition(rng):
    vectors, table = _embeddings(rng, stain=1.0)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T.astype(np.float64)
    margins = []
    for i in range(2 * N):
        same, other = (i + N) % (2 * N), np.arange(N) + (i >= N) * N
        nearest = distance[i, other[other != i]].min()
        margins.append((nearest - distance[i, same]) / (nearest + distance[i, same]))
    found = next(f for f in tile_indices(vectors, table, 0) if f.metric == "tile_croma")
    assert found.value == pytest.approx(np.median(margins), abs=1e-5)
    assert found.low <= found.value <= found.high


def test_a_collapsed_encoder_gets_no_index(rng, caplog):
    _, table = _embeddings(rng, stain=0.0)
    with caplog.at_level("INFO"):
        assert list(tile_indices(np.ones((2 * N, D), np.float32), table, 0)) == []
    assert "tile_croma skipped" in caplog.text


def test_tiles_are_matched_by_name_and_those_missing_at_a_site_are_left_out():
    table = pd.DataFrame({"site": list("aaabb"), "name": ["2", "1", "3", "1", "2"]})
    found = shared_tiles(table)
    assert {site: rows.tolist() for site, rows in found.items()} == {"a": [1, 0], "b": [3, 4]}


def test_retrieval_of_the_same_tissue_at_another_site(rng):
    vectors, table = _embeddings(rng, stain=0.0, sites=3)
    vectors[-N:] = rng.normal(size=(N, D))  # the last site's embeddings are random
    shuffled = rng.permutation(len(table))
    metrics = {
        f.metric: f
        for f in across_sites(vectors[shuffled], table.iloc[shuffled].reset_index(drop=True), 0)
    }
    hits = [retrieval_hits(vectors[a : a + N], vectors[b : b + N], 1).mean()
            for a, b in ((0, N), (0, 2 * N), (N, 2 * N))]  # fmt: skip
    assert hits[0] == 1
    assert metrics["site_retrieval_top1"].value == pytest.approx(np.mean(hits))
    worst = metrics["worst_pair_retrieval_top1"]
    assert worst.value == pytest.approx(min(hits))
    assert worst.group in {"sites=s0 / s2", "sites=s1 / s2"}
    assert worst.patients == 6
