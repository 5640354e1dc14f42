"""Notes on nearly equal embeddings and on pretrained weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from stainssl.evaluation.collapse import (
    collapse_notes,
    mean_cosine,
    weights_notes,
    write_mean_cosine,
)
from stainssl.evaluation.geometry import effective_rank


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 99), st.integers(1, 30))
def test_mean_cosine_is_the_mean_over_all_pairs(count: int, dim: int, seed: int, cut: int) -> None:
    vectors = np.random.default_rng(seed).normal(0.5, 1, (count, dim)).astype(np.float32)
    expected = cosine_similarity(vectors)[~np.eye(count, dtype=bool)].mean()
    blocks = [vectors[:cut], vectors[cut:]]
    assert mean_cosine(blocks) == (pytest.approx(expected, abs=1e-5), count)


def test_mean_cosine_is_nan_for_fewer_than_two_nonzero_vectors() -> None:
    assert np.isnan(mean_cosine([])[0])
    assert np.isnan(mean_cosine([np.zeros((5, 3)), np.ones((1, 3))])[0])


def test_nearly_equal_embeddings_of_high_effective_rank_are_noted(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 128)).astype(np.float32)
    alike = (100 + vectors).astype(np.float16)
    assert effective_rank(alike.astype(np.float32)) > 90
    for name, values in (("well", vectors), ("alike", alike)):
        (tmp_path / name).mkdir()
        write_mean_cosine([values], tmp_path / name)
    folders = {name: [tmp_path / name] for name in ("well", "alike", "none")}
    (note,) = collapse_notes(folders)
    assert "alike (0.9999)" in note
    assert "well" not in note
    assert collapse_notes({"well": folders["well"]}) == []


def test_pretrained_weights_are_noted(tmp_path):
    known = {"recipe": "uni", "weights_sha256": "a" * 64}
    made = {
        "uni": known, "other": known | {"revision": "b" * 40, "source": "left out"},
        "hub": {"weights_sha256": "d" * 64, "revision": "e" * 40},
        "file": {"weights_sha256": "f" * 64}, "trained": {"weights_sha256": "c" * 64},
    }  # fmt: skip
    for name, made_by in made.items():
        (tmp_path / name).mkdir()
        write_mean_cosine([np.eye(3)], tmp_path / name, made_by=made_by)
    (note,) = weights_notes({name: [tmp_path / name] for name in made}, ["file", "imported"])
    assert note == (
        "Weights: uni (SHA-256 aaaaaaaaaaaa); other is uni (SHA-256 aaaaaaaaaaaa, revision "
        "bbbbbbbbbbbb); hub (SHA-256 dddddddddddd, revision eeeeeeeeeeee); file (SHA-256"
        " ffffffffffff)."
    )
    assert weights_notes({"trained": [tmp_path / "trained"], "none": [tmp_path]}) == []
