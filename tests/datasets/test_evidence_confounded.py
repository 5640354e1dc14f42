"""The confounded split of AMi-Br: embeddings of the site are misled, those of the label are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import evidence_confounded as confounded
from benchmarks import evidence_few_sites as few_sites
from benchmarks.evidence_confounded import Tiles

SITES = np.array(["midog-cs2", "midog-s360", "midog-xr", "tupac-1-23", "tupac-24-73"])


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    """100 cases of 12 tiles at five sites, a quarter of the tiles atypical at each."""
    case = np.repeat(np.arange(100), 12)
    atypical = (np.arange(1200) % 4 == 0).astype(np.int64)
    return Tiles(atypical, SITES[case % 5], np.char.add("c", case.astype(str)))


def embeddings_of(y: np.ndarray, seed: int = 0, noise: float = 0.3) -> np.ndarray:
    """(N, 6) float32 embeddings of `y` and noise."""
    rng = np.random.default_rng(seed)
    return (np.eye(6)[y] + noise * rng.normal(size=(len(y), 6))).astype(np.float32)


@pytest.mark.parametrize("way", confounded.WAYS)
def test_nine_of_ten_training_tiles_agree_with_their_group(tiles: Tiles, way: str) -> None:
    for train, val, test in confounded.case_folds(tiles):
        drawn = confounded.confounded(tiles, train, way, np.random.default_rng(0))
        assert not (drawn & ~train).any()
        assert tiles.atypical[drawn].mean() == pytest.approx(0.5)
        for label in (0, 1):
            share = tiles.goes_with(way)[drawn & (tiles.atypical == label)].mean()
            assert share == pytest.approx(0.9, abs=0.02)
        cases = [set(tiles.case[part]) for part in (train, val, test)]
        assert not cases[0] & cases[1]
        assert not cases[0] & cases[2]
        assert not cases[1] & cases[2]


def test_every_tile_is_tested_in_exactly_one_of_the_two_ways(tiles: Tiles) -> None:
    embeddings = embeddings_of(tiles.atypical)
    both = [set(confounded.answers(tiles, embeddings, way)["slide_id"]) for way in confounded.WAYS]
    assert not both[0] & both[1]
    assert len(both[0] | both[1]) == len(tiles.site)


def test_embeddings_of_the_label_are_right_and_of_the_site_misled(tiles: Tiles) -> None:
    site = np.unique(tiles.site, return_inverse=True)[1]
    result = confounded.record({
        "label.0": confounded.of_run(tiles, embeddings_of(tiles.atypical, 0)),
        "label.1": confounded.of_run(tiles, embeddings_of(tiles.atypical, 1)),
        "site": confounded.of_run(tiles, embeddings_of(site)),
        "noise": confounded.of_run(tiles, embeddings_of(site, noise=1e6)),
    })  # fmt: skip
    of = result["encoders"]
    assert of["label"]["seeds"] == 2
    assert of["label"]["auroc"]["value"] > 0.9
    assert of["site"]["auroc"]["value"] < 0.1
    assert of["noise"]["auroc"]["low"] < 0.5 < of["noise"]["auroc"]["high"]
    assert of["site"]["site"]["value"] > 0.9
    assert of["label"]["site"]["value"] == pytest.approx(0.2, abs=0.06)
    (pair,) = (
        row
        for row in result["differences"]["auroc"]
        if {row["first"], row["second"]} == {"label", "site"}
    )
    assert abs(pair["value"]) > 0.8
    text = confounded.section(
        result | {"cases": 100, "tiles": 1200, "input_size": 64, "resamples": 2000}
    )
    assert text.index("`label` |") < text.index("`site` |")
    assert "`label` minus `site`" in text  # all pairs, since none is of `SHOWN`


def test_training_on_few_sites_is_tested_on_each_other_site(tiles: Tiles) -> None:
    site = np.unique(tiles.site, return_inverse=True)[1]
    found = few_sites.of_run(tiles, embeddings_of(tiles.atypical))
    assert {name: len(one) for name, one in found.items()} == {"two": 30, "one": 20}
    for key, one in (pair for of in found.values() for pair in of.items()):
        trained, tested = key.split(": ")
        assert tested not in trained.split(", ")
        assert one.value > 0.9
    runs = {"label": found, "site": few_sites.of_run(tiles, embeddings_of(site))}
    made = few_sites.record(runs)
    assert made["encoders"]["site"]["two"]["auroc"]["value"] == pytest.approx(0.5, abs=0.05)
    text = few_sites.section(
        made | {"cases": 100, "tiles": 1200, "input_size": 64, "resamples": 2000}
    )
    assert text.index("`label` |") < text.index("`site` |")
    assert "trained on one: AUROC, mean of 20" in text


def test_no_test_case_is_used_for_training_or_validation(
    tiles: Tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(tiles: Tiles, embeddings: Any, y: Any, roles: Any, fold: int) -> Any:
        seen.append([set(tiles.case[role]) for role in roles])
        return confounded.answered(tiles, embeddings, y, roles, fold)

    monkeypatch.setattr(few_sites, "answered", spy)
    found = few_sites.answers(tiles, embeddings_of(tiles.atypical), SITES[:2])
    ((train, val, test),) = seen
    assert train
    assert val
    assert not train & val
    assert not (train | val) & test
    assert sum(map(len, found.values())) == 3 / 5 * len(tiles.site)
