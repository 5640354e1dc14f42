"""`embed`: compute the embeddings of a part's tiles with one or several encoders."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
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
from stainssl.stages.streamed import StreamedTiles
from stainssl.stores.embeddings import write_embeddings
from stainssl.stores.pixels import Pixels, open_pixels
from stainssl.stores.spool import Spool, SpooledArray
from stainssl.stores.tiles import read_tiles

log = logging.getLogger(__name__)


def run(job: EmbedJob) -> None:
    """Write the embeddings of a part, one store per encoder.

    Embeddings are imported for encoders with `features`, computed from tile embeddings by slide
    encoders (`vectors`), and otherwise computed from the stored tiles, or from the slides if tiles
    are not stored. The tiles are read once for all encoders, or once per encoder if these do not
    fit in the device's memory together.

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
        log.warning(
            "%d encoders do not fit in memory at once, so each reads the tiles by itself: %s",
            len(names), first_line(error),
        )  # fmt: skip
    for name in names:  # outside of `except`, so that the tensors in the traceback are freed
        _embed_together(job, [name])


def _embed(job: EmbedJob, names: list[str]) -> None:
    assert job.tiles is not None
    tiles, device, spent = read_tiles(job.tiles), reserve_device(), TimeSpent()
    loaded = [load_source(job.sources[name], device) for name in names]
    pixels = _tiles_of(job, tiles)
    blocks = _reported(embed_pixels(loaded, pixels, spent=spent), int(tiles["kept"].sum()), job)
    # Which slides of a stream can be read is only known at its end.
    apart = _spooled if job.streamed else _apart
    columns = apart(blocks, len(names), job.scratch)
    place = _places(pixels, tiles, job.part)
    for name, one, own in zip(names, loaded, columns, strict=True):
        write_embeddings(
            job.embeddings[name],
            slide_id=pixels.slide_id,
            counts=np.bincount(pixels.slide, minlength=len(pixels.slide_id)).tolist(),
            dim=one.dim,
            blocks=_counted(own, f"{job.part} {name}"),
            tile=pixels.tile,
            x=place["x"].to_numpy(np.int64),
            y=place["y"].to_numpy(np.int64),
            settings=_settings(name, job.sources[name].model, one, pixels),
        )
    _tell_times(job, pixels, loaded, spent)


def _tiles_of(job: EmbedJob, tiles: pd.DataFrame) -> Pixels | StreamedTiles:
    """The tiles to embed: the stored ones, or those read from the slides."""
    if job.streamed is not None:
        return StreamedTiles(job.streamed, tiles)
    assert job.pixels is not None
    return open_pixels(job.pixels)


def _tell_times(
    job: EmbedJob,
    pixels: Pixels | StreamedTiles,
    loaded: Sequence[LoadedEncoder],
    spent: TimeSpent,
) -> None:
    """Log what took the time of the job."""
    count, dims = len(pixels.tile), "+".join(str(one.dim) for one in loaded)
    if isinstance(pixels, StreamedTiles):
        log.info(
            "%s: slides read at the same time: %s", job.part, pixels.spent.line(count, "tiles")
        )
    log.info("%s: embeddings of %s dimensions; %s", job.part, dims, spent.line(count, "tiles"))


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


def _spooled(
    blocks: Iterator[list[HalfVectors]], count: int, folder: Path
) -> list[Iterator[HalfVectors]]:
    """As `_apart`, but all blocks are computed now and written to a temporary file."""
    spool = Spool(folder)
    held = [[spool.keep(own) for own in block] for block in blocks]
    return [_later([block[i] for block in held]) for i in range(count)]


def _later(held: list[HalfVectors | SpooledArray]) -> Iterator[HalfVectors]:
    for block in held:
        yield block[:]


def _settings(
    encoder: str, source: str, loaded: LoadedEncoder, pixels: Pixels | StreamedTiles
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


def _places(pixels: Pixels | StreamedTiles, tiles: pd.DataFrame, part: str) -> pd.DataFrame:
    """Positions of the tiles: one row per tile, in order, with `x` and `y` (level-0 px)."""
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


def _reported(
    blocks: Iterator[list[HalfVectors]], total: int, job: EmbedJob
) -> Iterator[list[HalfVectors]]:
    """Yield the blocks; log progress every ten seconds."""
    done, said = 0, time.monotonic()
    for block in blocks:
        done += len(block[0])
        if time.monotonic() - said > 10:
            said = time.monotonic()
            log.info("%s: %d of %d tiles", job.part, done, total)
        yield block


def _counted(blocks: Iterator[HalfVectors], name: str) -> Iterator[HalfVectors]:
    """Yield the blocks of one encoder; log the number of missing embeddings."""
    done = bad = 0
    for block in blocks:
        done += len(block)
        bad += int(np.isnan(block[:, 0]).sum())
        yield block
    if bad:
        log.warning("%s: %d of %d tiles have no embedding (bad JPEG or overflow)", name, bad, done)
