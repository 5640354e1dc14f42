"""`embedded` counts every tile that has no embedding, whatever the reason."""

from __future__ import annotations

import pandas as pd
import zarr

from stainssl.stages import run_stage
from stainssl.stores.tiles import read_tiles, write_tiles
from tests.pretrain.world import cohort, tile_table

PLACE = ("small", "train-0000")


def _corrupt_jpeg(path, tile: int) -> None:
    """Overwrite the JPEG of a tile so that it cannot be decoded."""
    group = zarr.open_group(path, mode="a")
    start, stop = group["offset"][tile : tile + 2]
    group["jpeg"][start:stop] = 0


def test_tiles_without_embedding_are_counted_per_slide(tmp_path):
    config = cohort(tmp_path, counts=(4, 5))
    paths = config.paths
    run_stage("pretrain", config, "random")
    _corrupt_jpeg(paths.pixels(*PLACE), 5)  # the second tile of the second slide
    run_stage("embed", config, "small", "random", "train-0000")
    run_stage("embedded", config, "small", "random")
    found = pd.read_csv(paths.embedded("small", "random")).set_index("slide_id")
    assert found["tiles"].to_dict() == {"a0": 4, "b1": 5}
    assert found["lost"].to_dict() == {"a0": 0, "b1": 1}


def test_a_tiled_slide_without_pixels_counts_all_its_tiles_as_lost(tmp_path):
    config = cohort(tmp_path, counts=(4, 5))
    paths = config.paths
    run_stage("pretrain", config, "random")
    sheet = pd.read_csv(tmp_path / "slides.csv")
    more = sheet.iloc[:1].assign(slide_id="broken"), sheet.iloc[:1].assign(slide_id="empty")
    pd.concat([sheet, *more]).to_csv(tmp_path / "slides.csv", index=False)
    tiles = [read_tiles(paths.tiles(*PLACE)), tile_table("broken", 3)]
    write_tiles(
        paths.tiles(*PLACE), pd.concat([*tiles, tiles[1].iloc[:1].assign(tile=9, kept=False)]), {}
    )
    run_stage("embed", config, "small", "random", "train-0000")
    run_stage("embedded", config, "small", "random")
    found = pd.read_csv(paths.embedded("small", "random")).set_index("slide_id")
    assert found.loc["broken", ["tiles", "vectors", "lost"]].tolist() == [3, 0, 3]
    assert found.loc["empty", ["tiles", "vectors", "lost"]].tolist() == [0, 0, 0]
