"""`embed`: compute the embeddings of a part's tiles with one or several encoders."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stainssl.encoders.compiling import CompiledNetwork
from stainssl.encoders.embedding import HalfVectors, embed_pixels
from stainssl.encoders.listing import described
from stainssl.encoders.loading import LoadedEncoder, load
from stainssl.encoders.stain_profiles import stain_profile, stain_profiles
from stainssl.encoders.tensors import first_line
from stainssl.errors import StainsslError
from stainssl.plan.encoders import EmbedJob, Source
from stainssl.runtime.devices import reserve_device
from stainssl.runtime.parallel import TimeSpent
from stainssl.stages import import_features, slide_vectors
from stainssl.stores.embeddings import write_embeddings
from stainssl.stores.pixels import Pixels, open_pixels
from stainssl.stores.spool import Spool, SpooledArray
from stainssl.stores.tiles import read_tiles

log = logging.getLogger(__name__)


def run(job: EmbedJob) -> None:
    """Write the embeddings of a part, one store per encoder.

    Embeddings are imported for encoders with `features`, computed from tile embeddings by slide
    encoders (`vectors`), and otherwise computed from the stored tiles. The tiles are decoded once
    for all encoders, or once per encoder if these do not fit in the device's memory together.

    Raises:
        StainsslError: an input is missing or incomplete, or an encoder cannot be loaded.
    """
    for name, source in job.sources.items():
        if source.features:
            import_features.run(source.features, job.slides, name, job.embeddings[name])
    for name, taken in job.vectors.items():
        slide_vectors.run(job.sources[name].model, taken, name, job.embeddings[name])
    if made := [n for n, s in job.sources.items() if not s.features and n not in job.vectors]:
        _embed_together(job, made)


def _embed_together(job: EmbedJob, names: list[str]) -> None:
    try:
        return _embed(job, names)
    except torch.OutOfMemoryError as error:
        if len(names) == 1:
            raise StainsslError(
                f"encoders.{names[0]} does not fit in the device's memory, one tile at a time:"
                f" {first_line(error)} Use a device with more memory, or a smaller network."
            ) from error
        log.warning("%d encoders do not fit in memory at once: %s", len(names), error)
    for name in names:  # outside of `except`, so that the tensors in the traceback are freed
        _embed_together(job, [name])


def _embed(job: EmbedJob, names: list[str]) -> None:
    assert job.pixels is not None
    assert job.tiles is not None
    pixels = open_pixels(job.pixels)
    device = reserve_device()
    sources = [job.sources[name].model for name in names]
    loaded = [load_source(job.sources[name], device) for name in names]
    place = _places(pixels, read_tiles(job.tiles), job.part)
    spent = TimeSpent()
    blocks = _apart(embed_pixels(loaded, pixels, spent=spent), len(names), job.scratch)
    for name, source, one, own in zip(names, sources, loaded, blocks, strict=True):
        write_embeddings(
            job.embeddings[name],
            slide_id=pixels.slide_id,
            counts=np.bincount(pixels.slide, minlength=len(pixels.slide_id)).tolist(),
            dim=one.dim,
            blocks=_counted(own, len(pixels), f"{job.part} {name}"),
            tile=pixels.tile,
            x=place["x"].to_numpy(np.int64),
            y=place["y"].to_numpy(np.int64),
            settings=_settings(name, source, one, pixels),
        )
    dims = "+".join(str(one.dim) for one in loaded)
    log.info(
        "%s: embeddings of %s dimensions; %s", job.part, dims, spent.line(len(pixels), "tiles")
    )


def load_source(source: Source, device: torch.device | str) -> LoadedEncoder:
    """Load an encoder of the config, with the stain profile to which it normalizes tiles, if any.

    Raises:
        StainsslError: see `load` and `stain_profile`.
    """
    wanted, profile = source.preprocess, None
    if wanted and wanted.is_averaged:
        profile = stain_profiles(wanted.normalizer, wanted.files)
    elif wanted:
        profile = stain_profile(wanted.normalizer, wanted.files[0])
    loaded = load(source.model, device, source.input_size, profile)
    return replace(loaded, model=CompiledNetwork(loaded.model)) if source.is_compiled else loaded


def _apart(
    blocks: Iterator[list[HalfVectors]], count: int, folder: Path
) -> list[Iterator[HalfVectors]]:
    """Split blocks of `count` encoders into one iterator per encoder.

    The first iterator must be exhausted before the others are used: the blocks of the others are
    written to a temporary file in `folder` meanwhile.
    """
    spool = Spool(folder)
    kept: list[list[HalfVectors | SpooledArray]] = [[] for _ in range(count - 1)]

    def first() -> Iterator[HalfVectors]:
        for mine, *others in blocks:
            for held, block in zip(kept, others, strict=True):
                held.append(spool.keep(block))
            yield mine

    return [first(), *(_later(held) for held in kept)]


def _later(held: list[HalfVectors | SpooledArray]) -> Iterator[HalfVectors]:
    for block in held:
        yield block[:]


def _settings(
    encoder: str, source: str, loaded: LoadedEncoder, pixels: Pixels
) -> dict[str, object]:
    return {
        "encoder": encoder,
        "source": source,
        "input_size": loaded.input_size,
        "weights_sha256": loaded.weights_sha256,
        "scale": loaded.scale,
        "size_px": pixels.size_px,
        "mpp": pixels.mpp,
        **described(source),
    }


def _places(pixels: Pixels, tiles: pd.DataFrame, part: str) -> pd.DataFrame:
    """Positions of the stored tiles: one row per tile, in order, with `x` and `y` (level-0 px)."""
    keys = pd.DataFrame(
        {"slide_id": np.asarray(pixels.slide_id, dtype=object)[pixels.slide], "tile": pixels.tile}
    )
    columns = ["slide_id", "tile", "x", "y"]
    found = keys.merge(tiles[columns], on=["slide_id", "tile"], how="left", validate="1:1")
    if absent := int(found["x"].isna().sum()):
        raise StainsslError(
            f"{part}: {absent} of {len(found)} stored tiles are not in the tile table: they were "
            "made from another one. Make the pixels again."
        )
    return found


def _counted(blocks: Iterator[HalfVectors], total: int, part: str) -> Iterator[HalfVectors]:
    """Yield the blocks; log progress every ten seconds and the number of missing embeddings."""
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
        log.warning("%s: %d of %d tiles have no embedding (bad JPEG or overflow)", part, bad, total)
