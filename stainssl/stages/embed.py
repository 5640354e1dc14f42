"""`embed`: the pixels of a part and an encoder → its embeddings."""

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
from stainssl.encoders.standards import standard, standards
from stainssl.encoders.tensors import first_line
from stainssl.errors import StainsslError
from stainssl.plan.encoders import EmbedJob, Source
from stainssl.runtime.devices import pick
from stainssl.runtime.parallel import TimeSpent
from stainssl.stages import import_features, slide_vectors
from stainssl.stores.embeddings import write_embeddings
from stainssl.stores.pixels import Pixels, open_pixels
from stainssl.stores.spool import Kept, Spool
from stainssl.stores.tiles import read_tiles

log = logging.getLogger(__name__)


def run(job: EmbedJob) -> None:
    """Embed one part, import what an encoder's `features` hold, or pool `vectors` by slide.

    Several encoders are embedded in one reading of the part: its tiles are decoded once. Where
    they do not fit in the device's memory together, each reads the part.

    Raises:
        StainsslError: an input is missing or not whole, or an encoder cannot be loaded.
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
    for name in names:  # here, where the error no longer holds what it failed with
        _embed_together(job, [name])


def _embed(job: EmbedJob, names: list[str]) -> None:
    assert job.pixels is not None
    assert job.tiles is not None
    pixels = open_pixels(job.pixels)
    device = pick()
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
    """An encoder of the config, with what its tiles are normalized to.

    Raises:
        StainsslError: see `load` and `standard`.
    """
    wanted, profile = source.standard, None
    if wanted and wanted.is_averaged:
        profile = standards(wanted.normalizer, wanted.files)
    elif wanted:
        profile = standard(wanted.normalizer, wanted.files[0])
    loaded = load(source.model, device, source.input_size, profile)
    return replace(loaded, model=CompiledNetwork(loaded.model)) if source.is_compiled else loaded


def _apart(
    blocks: Iterator[list[HalfVectors]], count: int, folder: Path
) -> list[Iterator[HalfVectors]]:
    """The blocks of each of `count` encoders; the first is to be read to its end before the others.

    What the others get meanwhile lies in a temporary file in `folder`.
    """
    spool = Spool(folder)
    kept: list[list[HalfVectors | Kept]] = [[] for _ in range(count - 1)]

    def first() -> Iterator[HalfVectors]:
        for mine, *others in blocks:
            for held, block in zip(kept, others, strict=True):
                held.append(spool.keep(block))
            yield mine

    return [first(), *(_later(held) for held in kept)]


def _later(held: list[HalfVectors | Kept]) -> Iterator[HalfVectors]:
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
    """A row per tile of the pixels, in their order, with `x` and `y` (level-0 px)."""
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
        log.warning("%s: %d of %d tiles have no embedding (bad JPEG or overflow)", part, bad, total)
