"""The verb `embed`: a vector per tile with the place of its tile."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from stainssl.encoders.loading import load
from stainssl.errors import StainsslError
from stainssl.stages import embed, run_stage
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.pixels import open_pixels
from stainssl.stores.tiles import read_tiles, write_tiles
from tests.pretrain.world import cohort

PLACE = ("small", "train-0000")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    made = cohort(tmp_path_factory.mktemp("embed"))
    run_stage("pretrain", made, "random")
    return made


def _embedded(config):
    run_stage("embed", config, "small", "random", "train-0000")
    return open_embeddings(config.paths.embeddings("small", "random", "train-0000"))


def test_a_vector_per_tile_in_its_slides_bag(config):
    found = _embedded(config)
    assert found.slide_id == ["a0", "b1", "a2", "b3"]
    assert found.features.shape == (42, 96)
    assert bool(found.valid.all())
    pixels = open_pixels(config.paths.pixels(*PLACE))
    images = torch.from_numpy(pixels.images(np.arange(12, 23))).permute(0, 3, 1, 2)
    expected = load(config.paths.model("random"))(images)
    np.testing.assert_allclose(found.read(found.rows("b1")), expected, atol=2e-2, rtol=1e-2)


def test_places_are_those_of_the_tile_table_whatever_its_order(config):
    paths = config.paths
    tiles = read_tiles(paths.tiles(*PLACE))
    extra = tiles.iloc[:1].assign(tile=99, kept=False)
    write_tiles(paths.tiles(*PLACE), pd.concat([tiles.iloc[::-1], extra]), {})
    found = _embedded(config)
    np.testing.assert_array_equal(found.x, found.tile * 48)
    assert set(found.y) == {7}


def test_pixels_of_another_tile_table_are_refused(tmp_path):
    config = cohort(tmp_path, counts=(4, 4))
    run_stage("pretrain", config, "random")
    paths = config.paths
    write_tiles(paths.tiles(*PLACE), read_tiles(paths.tiles(*PLACE)).iloc[:6], {})
    with pytest.raises(StainsslError, match="2 of 8 stored tiles are not in the tile table"):
        _embedded(config)
    assert not paths.embeddings("small", "random", "train-0000").exists()


def test_encoders_that_do_not_fit_together_read_one_after_the_other(config, monkeypatch):
    asked = []

    def full(job, names):
        asked.append(names)
        if len(names) > 1 or names == ["huge"]:
            raise torch.OutOfMemoryError("CUDA: tried to allocate 20 GiB, 16 GiB are there.")

    monkeypatch.setattr(embed, "_embed", full)
    encoders = {**config.encoders, "huge": config.encoders["random"]}
    more = config.model_copy(update={"encoders": encoders})
    run_stage("embed", more, "small", ["random", "si"], "train-0000")
    assert asked == [["random", "si"], ["random"], ["si"]]
    with pytest.raises(
        StainsslError, match=r"encoders\.huge does not fit in .* allocate 20 GiB, 16 GiB are there"
    ):
        run_stage("embed", more, "small", "huge", "train-0000")


def test_two_encoders_in_one_reading_are_as_one_after_the_other(config):
    twice = config.model_copy(
        update={"encoders": {**config.encoders, "again": config.encoders["random"]}}
    )
    paths = config.paths
    if not paths.model("again").exists():
        paths.model("again").parent.mkdir(parents=True)
        paths.model("again").symlink_to(paths.model("random").resolve())
    alone = np.asarray(_embedded(config).features)
    run_stage("embed", twice, "small", ["random", "again"], "train-0000")
    for name in ("random", "again"):
        store = open_embeddings(paths.embeddings("small", name, "train-0000"))
        np.testing.assert_array_equal(np.asarray(store.features), alone)
