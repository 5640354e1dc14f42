"""`stainssl pixels`: store the kept tiles of a part as JPEG, with their stain profiles."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from stainssl.errors import SlideError
from stainssl.plan.slides import PixelsJob
from stainssl.runtime.parallel import TimeSpent, job_threads, library_threads, parallel_map
from stainssl.slides.errors import present_file, run_with_limits
from stainssl.slides.scale import read_square
from stainssl.slides.shared import SharedSlide, open_shared
from stainssl.slides.slide import Slide
from stainssl.slides.staging import staged
from stainssl.slides.unchanged import SlideFingerprint, recorded
from stainssl.stages.tile import refuse_missing
from stainssl.stain import METHODS, StainProfile, estimate
from stainssl.stores.pixels import JpegSpool, SlidePixels, encode, write_pixels
from stainssl.stores.tiles import read_qc, read_tiles

BLOCK = 64  # tiles that are read, encoded and profiled at a time
MAX_UNREADABLE = 0.1  # largest share of unreadable tiles; otherwise the slide is left out
log = logging.getLogger(__name__)


def _profiles(images: npt.NDArray[np.uint8]) -> dict[str, StainProfile]:
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    return {method: estimate(batch, method) for method in METHODS}


@dataclass(frozen=True)
class _Block:
    """Encoded tiles of a slide, their stain profiles, and errors of tiles that were not read."""

    jpegs: list[bytes]
    profiles: dict[str, StainProfile]
    errors: list[SlideError]


def _read(
    slide: Slide, rows: pd.DataFrame, size_px: int, allowed: float
) -> tuple[npt.NDArray[np.uint8], dict[int, SlideError]]:
    """Read tiles as (n, size_px, size_px, 3) uint8, white if unreadable, and errors by position.

    Stops after more than `allowed` errors.
    """
    images = np.full((len(rows), size_px, size_px, 3), 255, np.uint8)
    errors: dict[int, SlideError] = {}
    for i, (x, y, side) in enumerate(zip(rows["x"], rows["y"], rows["side"], strict=True)):
        try:
            images[i] = read_square(slide, x, y, side, size_px)
        except SlideError as error:
            errors[i] = error
            if len(errors) > allowed:
                break
    return images, errors


def _blocks(
    slide: SharedSlide,
    tiles: pd.DataFrame,
    size_px: int,
    workers: int,
    spent: TimeSpent,
    has_profiles: bool,
) -> Iterator[_Block]:
    """Read, encode and profile the tiles of a slide in threads; yield the blocks in order."""

    def work(rows: pd.DataFrame) -> _Block:
        with slide.lent() as handle, spent.on("reading"):
            images, errors = _read(handle, rows, size_px, MAX_UNREADABLE * len(tiles))
        with spent.on("JPEG"):
            jpegs = [b"" if i in errors else encode(image) for i, image in enumerate(images)]
        if not has_profiles:
            return _Block(jpegs, {}, list(errors.values()))
        with spent.on("stain profiles"):
            return _Block(jpegs, _profiles(images), list(errors.values()))

    rows = (tiles.iloc[start : start + BLOCK] for start in range(0, len(tiles), BLOCK))
    return parallel_map(work, rows, workers)


def slide_pixels(
    slide: SharedSlide,
    slide_id: str,
    tiles: pd.DataFrame,
    size_px: int,
    *,
    workers: int = 1,
    spent: TimeSpent | None = None,
    has_profiles: bool = True,
) -> SlidePixels:
    """Read and encode the tiles of one slide and estimate their stain profiles.

    A tile that cannot be read has no bytes and an invalid profile.

    Args:
        slide: open slide, shared by threads.
        slide_id: name of the slide.
        tiles: kept tiles, at least one; columns as in `stores.tiles`.
        size_px: side of an encoded tile.
        workers: number of threads; those without a handle of the slide encode and profile.
        spent: collects the time spent on each step.
        has_profiles: whether stain profiles are estimated.

    Raises:
        SlideError: more than `MAX_UNREADABLE` of the tiles cannot be read.
    """
    jpeg, errors = JpegSpool(), []
    profiles: dict[str, list[StainProfile]] = {}
    for block in _blocks(slide, tiles, size_px, workers, spent or TimeSpent(), has_profiles):
        errors += block.errors
        if len(errors) > MAX_UNREADABLE * len(tiles):
            raise errors[int(MAX_UNREADABLE * len(tiles))]
        for encoded in block.jpegs:
            jpeg.append(encoded)
        for method, profile in block.profiles.items():
            profiles.setdefault(method, []).append(profile)
    if errors:
        log.warning("%s: %d of %d tiles cannot be read", slide_id, len(errors), len(tiles))
    joined = {method: StainProfile.cat(found) for method, found in profiles.items()}
    return SlidePixels(
        slide_id=slide_id,
        tile=tiles["tile"].to_numpy(np.int32),
        jpeg=jpeg,
        profiles={method: profile.to_arrays() for method, profile in joined.items()},
        pooled={method: profile.pooled().to_arrays() for method, profile in joined.items()},
    )


def encoded_slides(
    job: PixelsJob, tiles: pd.DataFrame, spent: TimeSpent, has_profiles: bool = True
) -> Iterator[SlidePixels]:
    """Yield the pixels of a part's slides in order, as many in parallel as the job has threads.

    If there are fewer slides than threads, the tiles of each are read by several threads. Slides
    that can no longer be read are left out with a warning.

    Args:
        job: names the slides and how they are read; nothing is written.
        tiles: table of the part's tiles; those that are kept are read.
        spent: collects the time spent on each step.
        has_profiles: whether stain profiles are estimated.
    """
    by_slide = dict(list(tiles[tiles["kept"]].groupby("slide_id")))
    places = zip(job.rows["slide_id"], job.rows["path"], strict=True)
    todo = [(slide_id, Path(path)) for slide_id, path in places if slide_id in by_slide]
    at_once = max(1, min(job_threads(), len(todo)))
    readers = job_threads() // at_once
    reader = _Reader(job, by_slide, recorded(read_qc(job.qc)), readers, spent, has_profiles)
    return (one for one in parallel_map(reader.encoded, todo, at_once) if one is not None)


@dataclass(frozen=True)
class _Reader:
    """Reads and encodes the slides of a part.

    Attributes:
        job: the job.
        tiles: slide → its kept tiles.
        fingerprints: slide → how it was when it was tiled.
        readers: threads per slide.
        spent: collects the time spent on each step.
        has_profiles: whether stain profiles are estimated.
    """

    job: PixelsJob
    tiles: dict[str, pd.DataFrame]
    fingerprints: dict[str, SlideFingerprint]
    readers: int
    spent: TimeSpent
    has_profiles: bool

    def encoded(self, place: tuple[str, Path]) -> SlidePixels | None:
        """Read a slide, given its name and file; None, with a warning, if it cannot be read.

        Raises:
            StainsslError: the file is missing, and the job does not allow this.
            OSError: the machine, the disk or the mount failed.
        """
        (slide_id, path), started = place, time.monotonic()
        try:
            found = run_with_limits(path, self.job.max_minutes, partial(self._read, slide_id, path))
        except SlideError as error:  # it could be read when it was tiled
            refuse_missing(error, slide_id, self.job.may_miss)
            log.warning("%s: left out: %s", slide_id, error)
            return None
        # A cohort may have thousands of patches of one tile.
        count, level = len(found.tile), logging.INFO if len(found.tile) > 1 else logging.DEBUG
        log.log(level, "%s: %d tiles in %.1f s", slide_id, count, time.monotonic() - started)
        return found

    def _read(self, slide_id: str, path: Path) -> SlidePixels:
        job = self.job
        with (
            present_file(path, job.root),
            staged(path, *job.staging) as here,
            open_shared(here, job.reader, self.readers) as slide,
        ):
            if fingerprint := self.fingerprints.get(slide_id):
                fingerprint.require(here, slide)
            return slide_pixels(
                slide,
                slide_id,
                self.tiles[slide_id],
                job.tiling.size,
                # Even with one thread, encode while reading, which mostly waits for the disk.
                workers=2 if job_threads() == 1 else self.readers,
                spent=self.spent,
                has_profiles=self.has_profiles,
            )


def run(job: PixelsJob) -> None:
    """Write the pixels of a part; slides that can no longer be read are left out with a warning."""
    spent, tiles = TimeSpent(), read_tiles(job.tiles)
    # One torch thread per block, since blocks are processed in parallel.
    with library_threads(torch.get_num_threads, torch.set_num_threads, 1):
        write_pixels(
            job.pixels,
            encoded_slides(job, tiles, spent),
            size_px=job.tiling.size,
            mpp=job.tiling.mpp,
            settings={"tiling": job.tiling.model_dump(mode="json"), "normalizers": list(METHODS)},
        )
    log.info("%s", spent.line(int(tiles["kept"].sum()), "tiles"))
