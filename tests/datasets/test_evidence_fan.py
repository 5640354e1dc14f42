"""The measurement on fields under several protocols: its figures at known answers, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks import evidence_fan


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Four fields of two blocks under three protocols."""
    rng, rows = np.random.default_rng(0), []
    fields = rng.integers(60, 200, (4, 8, 8, 3)).astype(np.uint8)
    for protocol in range(3):
        for number, field in enumerate(fields):
            path = f"p{protocol}f{number}.png"
            picture = Image.fromarray(field).resize((48, 48), Image.Resampling.BICUBIC)
            picture.point(lambda v, by=protocol: v - 20 * by).save(tmp_path / path)
            rows.append((path, f"block-{number // 2}", f"protocol-{protocol}", f"F{number}"))
    table = pd.DataFrame(rows, columns=["path", "patient_id", "site", "field"])
    table.sample(frac=1, random_state=1).to_csv(tmp_path / "tiles.csv", index=False)
    return tmp_path


def test_a_vector_that_is_the_field_alone_finds_it_everywhere() -> None:
    vectors = np.tile(np.eye(5), (3, 1))
    found = evidence_fan.of_an_encoder(vectors, 3)
    assert found["top1"].shape == (3, 5)
    for name in ("top1", "reciprocal_rank", "margin"):
        np.testing.assert_allclose(found[name], 1)


def test_a_vector_that_is_the_stain_alone_finds_nothing() -> None:
    vectors = np.repeat(np.eye(3), 5, axis=0)
    found = evidence_fan.of_an_encoder(vectors, 3)
    assert found["top1"].max() == 0  # ties count against the field
    np.testing.assert_allclose(found["reciprocal_rank"], 1 / 5)
    np.testing.assert_allclose(found["margin"], 0)


def test_ranks_are_those_of_a_search() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 6, 4))
    found = evidence_fan.of_a_pair(first, second)
    for field in range(6):
        ranks = []
        for one, two in ((first, second), (second, first)):
            near = [one[field] @ v / np.linalg.norm(one[field]) / np.linalg.norm(v) for v in two]
            ranks.append(1 + sum(v > near[field] for v in near))
        assert found["top1"][field] == np.mean([r == 1 for r in ranks])
        assert found["reciprocal_rank"][field] == pytest.approx(np.mean([1 / r for r in ranks]))


def test_it_measures_averages_seeds_and_fills_the_page(tiles: Path, tmp_path: Path) -> None:
    words = ["one=random:test_resnet", "two=random:test_resnet,random:test_resnet", "color=color"]
    where = ["--tiles", str(tiles), "--json", str(tmp_path / "fan.json"), "--input-size", "32"]
    evidence_fan.main(["measure", *where, "--encoder", *words])
    made = json.loads((tmp_path / "fan.json").read_text())
    assert (made["fields"], made["protocols"], made["blocks"]) == (4, 3, 2)
    one, two = made["encoders"]["one"], made["encoders"]["two"]
    assert (one["seeds"], two["seeds"]) == (1, 2)
    assert {**one, "seeds": 2} == two
    assert "`two`" in evidence_fan.section(made)
