"""`stainssl cohort embedded`: count the tiles of each slide that have an embedding."""

from __future__ import annotations

import logging

import pandas as pd

from stainssl.plan.encoders import EmbeddedJob
from stainssl.stores.atomic import write_text
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.tiles import read_tiles

log = logging.getLogger(__name__)


def run(job: EmbeddedJob) -> None:
    """Write one row per slide: kept `tiles`, `vectors` (embeddings), and the difference `lost`.

    A tile is lost if it could not be read or decoded, if its embedding overflows float16, or if
    its slide could no longer be read after tiling.
    """
    counts = pd.concat([_counts(job, part) for part in job.embeddings])
    slides = job.rows.merge(counts, on="slide_id", how="left", validate="one_to_one")
    slides = slides.fillna({"tiles": 0, "vectors": 0}).astype({"tiles": int, "vectors": int})
    slides["lost"] = slides["tiles"] - slides["vectors"]
    lost, losers = slides["lost"].sum(), (slides["lost"] > 0).sum()
    log.info(
        "%s, %s: %d of %d tiles have no embedding, from %d slides",
        job.cohort, job.encoder, lost, slides["tiles"].sum(), losers,
    )  # fmt: skip
    write_text(job.slides, slides.to_csv(index=False))


def _counts(job: EmbeddedJob, part: str) -> pd.DataFrame:
    """`slide_id`, `tiles` and `vectors` of the slides of a part that have tiles."""
    store = open_embeddings(job.embeddings[part])
    rows = {slide: store.valid[store.rows(slide)] for slide in store.slide_id}
    vectors = pd.Series({slide: int(valid.sum()) for slide, valid in rows.items()}, dtype=int)
    tiles = pd.Series({slide: len(valid) for slide, valid in rows.items()}, dtype=int)
    if part in job.tiles:  # not for imported features, which are not of our tiles
        table = read_tiles(job.tiles[part])
        tiles = table[table["kept"]].groupby("slide_id").size()
    return pd.DataFrame({"tiles": tiles, "vectors": vectors}).rename_axis("slide_id").reset_index()
