"""The benchmark on fields under several protocols: metrics in known cases, and its page."""

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


def test_embeddings_of_the_field_retrieve_it_in_every_protocol() -> None:
    embeddings = np.tile(np.eye(5), (3, 1))
    found = evidence_fan.of_an_encoder(embeddings, 3)
    assert found["top1"].shape == (3, 5)
    for name in ("top1", "reciprocal_rank", "margin"):
        np.testing.assert_allclose(found[name], 1)


def test_embeddings_of_the_stain_retrieve_no_field() -> None:
    embeddings = np.repeat(np.eye(3), 5, axis=0)
    found = evidence_fan.of_an_encoder(embeddings, 3)
    assert found["top1"].max() == 0  # ties count against the field
    np.testing.assert_allclose(found["reciprocal_rank"], 1 / 5)
    np.testing.assert_allclose(found["margin"], 0)


def test_ranks_equal_those_of_a_search() -> None:
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


def test_seeds_are_averaged_and_the_section_is_written(tiles: Path, tmp_path: Path) -> None:
    encoders = [
        "one=random:test_resnet",
        "two=random:test_resnet,random:test_resnet",
        "color=color",
    ]
    arguments = ["--tiles", str(tiles), "--json", str(tmp_path / "fan.json"), "--input-size", "32"]
    evidence_fan.main(["measure", *arguments, "--encoder", *encoders])
    result = json.loads((tmp_path / "fan.json").read_text())
    assert (result["fields"], result["protocols"], result["blocks"]) == (4, 3, 2)
    one, two = result["encoders"]["one"], result["encoders"]["two"]
    assert (one["seeds"], two["seeds"]) == (1, 2)
    assert {**one, "seeds": 2} == two
    assert "`two`" in evidence_fan.section(result)
