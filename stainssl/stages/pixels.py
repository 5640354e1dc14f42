"""`stainssl pixels`: slides and tiles of a part → encoded tiles and their stain profiles."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from stainssl.errors import SlideError
from stainssl.plan.slides import PixelsJob
from stainssl.runtime.prefetch import prefetched
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_square
from stainssl.slides.slide import Slide
from stainssl.slides.staging import staged
from stainssl.slides.unchanged import recorded
from stainssl.stain import METHODS, StainProfile, estimate
from stainssl.stores.pixels import JpegSpool, SlidePixels, encode, write_pixels
from stainssl.stores.tiles import read_qc, read_tiles

BLOCK = 64  # tiles whose profiles are estimated at once
MAX_UNREADABLE = 0.1  # share of a slide's tiles past which it is not tried any longer
log = logging.getLogger(__name__)


def _profiles(images: npt.NDArray[np.uint8]) -> dict[str, StainProfile]:
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    return {method: estimate(batch, method) for method in METHODS}


def _blocks(
    slide: Slide, tiles: pd.DataFrame, size_px: int
) -> Iterator[tuple[npt.NDArray[np.uint8], list[bool]]]:
    """Images of some tiles and which could be read; the others are blank."""
    allowed = MAX_UNREADABLE * len(tiles)
    for start in range(0, len(tiles), BLOCK):
        rows = tiles.iloc[start : start + BLOCK]
        images = np.full((len(rows), size_px, size_px, 3), 255, np.uint8)
        readable = [True] * len(rows)
        for i, (x, y, side) in enumerate(zip(rows["x"], rows["y"], rows["side"], strict=True)):
            try:
                images[i] = read_square(slide, x, y, side, size_px)
            except SlideError:
                readable[i] = False
                allowed -= 1
                if allowed < 0:
                    raise
        yield images, readable


def slide_pixels(slide: Slide, slide_id: str, tiles: pd.DataFrame, size_px: int) -> SlidePixels:
    """Read, encode and stain-profile the tiles of one slide.

    A tile that cannot be read has no bytes and a profile that is not valid.

    Args:
        slide: an open slide.
        tiles: its kept tiles, columns as in `stores.tiles`; at least one.
        size_px: side of an encoded tile.

    Raises:
        SlideError: more than `MAX_UNREADABLE` of the tiles cannot be read.
    """
    jpeg = JpegSpool()
    profiles: dict[str, list[StainProfile]] = {method: [] for method in METHODS}
    bad = 0
    for images, readable in prefetched(_blocks(slide, tiles, size_px)):  # reading overlaps the rest
        for image, good in zip(images, readable, strict=True):
            jpeg.append(encode(image) if good else b"")
        bad += readable.count(False)
        for method, profile in _profiles(images).items():
            profiles[method].append(profile)
    if bad:
        log.warning("%s: %d of %d tiles cannot be read", slide_id, bad, len(tiles))
    joined = {method: StainProfile.cat(found) for method, found in profiles.items()}
    return SlidePixels(
        slide_id=slide_id,
        tile=tiles["tile"].to_numpy(np.int32),
        jpeg=jpeg,
        profiles={method: profile.to_arrays() for method, profile in joined.items()},
        pooled={method: profile.pooled().to_arrays() for method, profile in joined.items()},
    )


def _each_slide(job: PixelsJob, tiles: pd.DataFrame) -> Iterator[SlidePixels]:
    by_slide = dict(list(tiles[tiles["kept"]].groupby("slide_id")))
    identities = recorded(read_qc(job.qc))
    for slide_id, path in zip(job.rows["slide_id"], job.rows["path"], strict=True):
        if slide_id not in by_slide:
            continue
        started = time.monotonic()
        try:
            with (
                staged(Path(path), *job.staging) as place,
                open_slide(place, job.reader) as slide,
            ):
                if slide_id in identities:
                    identities[slide_id].require(place, slide)
                found = slide_pixels(slide, slide_id, by_slide[slide_id], job.tiling.size)
        except SlideError as error:  # tiling read it, this did not: the other slides stay
            log.warning("%s: left out: %s", slide_id, error)
            continue
        seconds = time.monotonic() - started
        log.info("%s: %d tiles in %.1f s", slide_id, len(found.tile), seconds)
        yield found


def run(job: PixelsJob) -> None:
    """Write the pixels of a part; a slide that cannot be read any more is left out and logged."""
    write_pixels(
        job.pixels,
        _each_slide(job, read_tiles(job.tiles)),
        size_px=job.tiling.size,
        mpp=job.tiling.mpp,
        settings={"tiling": job.tiling.model_dump(mode="json"), "normalizers": list(METHODS)},
    )
