"""`stainssl cohort embedded`: how many tiles of each slide of a cohort have a vector."""

from __future__ import annotations

import logging

import pandas as pd

from stainssl.cohort import PART, parts, read_sheet
from stainssl.config import Config
from stainssl.plan.paths import Paths
from stainssl.stores.atomic import write_text
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.tiles import read_tiles

log = logging.getLogger(__name__)


def run(config: Config, cohort: str, encoder: str) -> None:
    """Write a row per slide: `tiles` that were kept, `vectors`, and `lost`, their difference.

    A tile is lost where it could not be read or decoded, where its vector does not fit float16,
    and with its slide where that broke after it was tiled.
    """
    counts = [_counts(config, cohort, encoder, part) for part in parts(config, cohort)]
    sheet = read_sheet(config, cohort)[["slide_id", "patient_id", "site", PART]].rename(
        columns={PART: "part"}
    )
    slides = sheet.merge(pd.concat(counts), on="slide_id", how="left", validate="one_to_one")
    slides = slides.fillna({"tiles": 0, "vectors": 0}).astype({"tiles": int, "vectors": int})
    slides["lost"] = slides["tiles"] - slides["vectors"]
    lost, losers = slides["lost"].sum(), (slides["lost"] > 0).sum()
    log.info(
        "%s, %s: %d of %d tiles have no vector, of %d slides",
        cohort, encoder, lost, slides["tiles"].sum(), losers,
    )  # fmt: skip
    path = Paths(config.results).embedded(cohort, config.cohorts[cohort].tiling, encoder)
    write_text(path, slides.to_csv(index=False))


def _counts(config: Config, cohort: str, encoder: str, part: str) -> pd.DataFrame:
    """`slide_id`, `tiles` and `vectors` of a part's slides that have any tile."""
    paths, tiling = Paths(config.results), config.cohorts[cohort].tiling
    store = open_embeddings(paths.embeddings(cohort, tiling, encoder, part))
    rows = {slide: store.valid[store.rows(slide)] for slide in store.slide_id}
    vectors = pd.Series({slide: int(valid.sum()) for slide, valid in rows.items()}, dtype=int)
    tiles = pd.Series({slide: len(valid) for slide, valid in rows.items()}, dtype=int)
    if not config.run(encoder).encoder.features:  # imported features come without our tiles
        table = read_tiles(paths.tiles(cohort, tiling, part))
        tiles = table[table["kept"]].groupby("slide_id").size()
    return pd.DataFrame({"tiles": tiles, "vectors": vectors}).rename_axis("slide_id").reset_index()
