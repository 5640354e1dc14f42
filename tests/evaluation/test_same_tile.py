"""Indices of a tile against itself tell an encoder of tissue from one of stain."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stainssl.evaluation.geometry import retrieval_hits
from stainssl.evaluation.same_tile import across_sites, shared_tiles, tile_indices

N, D = 60, 16


def _pictures(rng, *, stain: float, sites: int = 2) -> tuple[np.ndarray, pd.DataFrame]:
    """Vectors of N tiles at several sites: a part of the tissue, and one of the stain."""
    own, code = rng.normal(size=(N, D)), rng.normal(size=(sites, D))
    vectors = [own + stain * code[s] + 0.05 * rng.normal(size=(N, D)) for s in range(sites)]
    names = [f"t{i:02d}" for i in range(N)]
    parts = [pd.DataFrame({"name": names, "stain": f"s{s}", "site": f"s{s}"}) for s in range(sites)]
    table = pd.concat(parts, ignore_index=True)
    table["patient_id"] = table["name"].str[:2]
    return np.concatenate(vectors).astype(np.float32), table


def _values(figures) -> dict[str, float]:
    return {figure.metric: figure.value for figure in figures}


def test_the_tile_rules_where_vectors_are_of_tissue_and_the_stain_where_they_are_of_it(rng):
    tissue = _values(tile_indices(*_pictures(rng, stain=0.0), 0))
    stain = _values(tile_indices(*_pictures(rng, stain=20.0), 0))
    assert tissue["tile_croma"] > 0.5
    assert tissue["tile_robustness_index"] == 1
    assert stain["tile_croma"] < -0.5
    assert stain["tile_robustness_index"] == 0


def test_the_margin_is_what_its_definition_says(rng):
    vectors, table = _pictures(rng, stain=1.0)
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
    _, table = _pictures(rng, stain=0.0)
    with caplog.at_level("INFO"):
        assert list(tile_indices(np.ones((2 * N, D), np.float32), table, 0)) == []
    assert "tile_croma skipped" in caplog.text


def test_tiles_are_matched_by_name_and_those_of_some_sites_alone_are_left_out():
    table = pd.DataFrame({"site": list("aaabb"), "name": ["2", "1", "3", "1", "2"]})
    found = shared_tiles(table)
    assert {site: rows.tolist() for site, rows in found.items()} == {"a": [1, 0], "b": [3, 4]}


def test_the_same_tissue_is_found_again_at_another_site(rng):
    vectors, table = _pictures(rng, stain=0.0, sites=3)
    vectors[-N:] = rng.normal(size=(N, D))  # the last site's vectors know nothing
    shuffled = rng.permutation(len(table))
    figures = {
        f.metric: f
        for f in across_sites(vectors[shuffled], table.iloc[shuffled].reset_index(drop=True), 0)
    }
    hits = [retrieval_hits(vectors[a : a + N], vectors[b : b + N], 1).mean()
            for a, b in ((0, N), (0, 2 * N), (N, 2 * N))]  # fmt: skip
    assert hits[0] == 1
    assert figures["site_retrieval_top1"].value == pytest.approx(np.mean(hits))
    worst = figures["worst_pair_retrieval_top1"]
    assert worst.value == pytest.approx(min(hits))
    assert worst.group in {"sites=s0 / s2", "sites=s1 / s2"}
    assert worst.patients == 6
