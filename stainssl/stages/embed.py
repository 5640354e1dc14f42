"""`embed`: the pixels of a part and an encoder → its embeddings."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from stainssl.config import Config
from stainssl.embed import embed_pixels
from stainssl.encoders import LoadedEncoder, load
from stainssl.paths import Paths
from stainssl.stages import import_features
from stainssl.status import StainsslError
from stainssl.stores.embeddings import write_embeddings
from stainssl.stores.pixels import Pixels, open_pixels
from stainssl.stores.tiles import read_tiles

log = logging.getLogger(__name__)


def run(config: Config, cohort: str, encoder: str, part: str) -> None:
    """Embed one part with one encoder, or import what its `features` hold.

    Raises:
        StainsslError: an input is missing or not whole, or the encoder cannot be loaded.
    """
    if config.run(encoder).encoder.features:
        return import_features.run(config, cohort, encoder, part)
    paths, tiling = Paths(config.results), config.cohorts[cohort].tiling
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = open_pixels(paths.pixels(cohort, tiling, part))
    source = config.run(encoder).encoder.weights or str(paths.model(encoder))
    loaded = load(source, device)
    place = _places(pixels, read_tiles(paths.tiles(cohort, tiling, part)), f"{cohort}/{part}")
    started = time.monotonic()
    write_embeddings(
        paths.embeddings(cohort, tiling, encoder, part),
        slide_id=pixels.slide_id,
        counts=np.bincount(pixels.slide, minlength=len(pixels.slide_id)).tolist(),
        dim=loaded.dim,
        blocks=_counted(embed_pixels(loaded, pixels), len(pixels), part),
        tile=pixels.tile,
        x=place["x"].to_numpy(np.int64),
        y=place["y"].to_numpy(np.int64),
        settings=_settings(encoder, source, loaded, pixels),
    )
    rate = len(pixels) / max(time.monotonic() - started, 1e-9)
    log.info("%s: %d tiles, %d numbers each, %.0f tiles/s", part, len(pixels), loaded.dim, rate)


def _settings(
    encoder: str, source: str, loaded: LoadedEncoder, pixels: Pixels
) -> dict[str, object]:
    return {
        "encoder": encoder,
        "source": source,
        "input_size": loaded.input_size,
        "size_px": pixels.size_px,
        "mpp": pixels.mpp,
    }


def _places(pixels: Pixels, tiles: pd.DataFrame, part: str) -> pd.DataFrame:
    """A row per tile of the pixels, in their order, with `x` and `y` (level-0 px)."""
    keys = pd.DataFrame(
        {"slide_id": np.asarray(pixels.slide_id, dtype=object)[pixels.slide], "tile": pixels.tile}
    )
    columns = ["slide_id", "tile", "x", "y"]
    found = keys.merge(tiles[columns], on=["slide_id", "tile"], how="left", validate="1:1")
    if absent := int(found["x"].isna().sum()):
        raise StainsslError(
            f"{part}: {absent} of {len(found)} tiles of the pixels are not in the tile table: they "
            "were made from another one. Make the pixels again."
        )
    return found


def _counted(
    blocks: Iterator[npt.NDArray[np.float16]], total: int, part: str
) -> Iterator[npt.NDArray[np.float16]]:
    """The blocks as they are; says how far it is every ten seconds, and how many rows are bad."""
    done = bad = 0
    said = time.monotonic()
    for block in blocks:
        done += len(block)
        bad += int(np.isnan(block[:, 0]).sum())
        if time.monotonic() - said > 10:
            said = time.monotonic()
            log.info("%s: %d of %d tiles", part, done, total)
        yield block
    if bad:
        log.warning("%s: %d of %d tiles have no vector (bad JPEG or overflow)", part, bad, total)
