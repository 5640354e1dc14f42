"""Compute one embedding per slide from the tile embeddings of a part, with a slide encoder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stainssl.encoders.listing import described
from stainssl.encoders.slide_encoders import LoadedSlideEncoder, load
from stainssl.errors import StainsslError
from stainssl.export.read import UNKNOWN
from stainssl.runtime.devices import reserve_device
from stainssl.stores.embeddings import Embeddings, open_embeddings, write_embeddings

log = logging.getLogger(__name__)


def run(source: str, taken: Path, encoder: str, path: Path) -> None:
    """Write a store with one row per slide; slides without a valid tile embedding have none.

    Args:
        source: slide encoder, as accepted by `slide_encoders.load`.
        taken: store of the tile embeddings.
        encoder: name of the encoder, recorded in the store.
        path: output store.

    Raises:
        StainsslError: the encoder cannot be loaded, or the tile embeddings have the wrong
            dimension.
    """
    store, loaded = open_embeddings(taken), load(source, reserve_device())
    wanted, found = loaded.recipe.tile_dim, store.features.shape[1]
    if len(store) and wanted != found:
        raise StainsslError(
            f"encoders.{encoder}: {loaded.name} needs embeddings of {wanted} dimensions, by"
            f" {' or '.join(loaded.recipe.tiles)}; {taken} has {found}."
        )
    slides = [slide for slide in store.slide_id if store.valid[store.rows(slide)].any()]
    count = len(slides)
    write_embeddings(
        path,
        slide_id=slides,
        counts=[1] * count,
        dim=loaded.recipe.dim,
        blocks=_blocks(loaded, store, slides),
        tile=np.zeros(count, np.int32),
        x=np.full(count, UNKNOWN, np.int64),
        y=np.full(count, UNKNOWN, np.int64),
        settings={
            "encoder": encoder, "source": source, "weights_sha256": loaded.weights_sha256,
            "scale": 1.0, **described(source),
        },
    )  # fmt: skip
    log.info("%s: %d of %d slides have an embedding", path.stem, count, len(store.slide_id))


def _blocks(
    loaded: LoadedSlideEncoder, store: Embeddings, slides: list[str]
) -> Iterator[np.ndarray]:
    for slide in slides:
        rows = store.rows(slide)
        tiles = store.read(rows)[store.valid[rows]].astype(np.float32) / store.scale
        with np.errstate(over="ignore"):
            vector = loaded(tiles).astype(np.float16)
        if not np.isfinite(vector).all():
            log.warning("%s: its embedding overflows float16", slide)
            vector = np.full_like(vector, np.nan)
        yield vector[None]
