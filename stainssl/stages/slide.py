"""`slide`: what one slide is, and what `tile` would make of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stainssl.cohort.installed import absent_reader
from stainssl.config import Slides, Tiling
from stainssl.errors import SlideError, StainsslError, Status, disk_faults_told
from stainssl.extras import how_to_install
from stainssl.runtime.parallel import job_threads
from stainssl.slides.errors import in_time, require_file
from stainssl.slides.scale import resolve_mpp
from stainssl.slides.shared import open_shared
from stainssl.slides.slide import Slide
from stainssl.slides.tiling import BACKGROUND
from stainssl.stages.tile import Outcome, tile_slide
from stainssl.stores.atomic import replacing


def run(
    path: Path,
    mpp: float = float("nan"),
    reader: str = "auto",
    picture: Path | None = None,
    tiling: Tiling | None = None,
) -> Iterator[str]:
    """Lines about one slide, the last its status, as the stage `tile` would find it.

    Args:
        path: the slide's file.
        mpp: µm in a level-0 px, as the column of a sheet; NaN: what the slide states.
        picture: a PNG of its tissue, ink and tiles; not written of a slide without a mask.
        tiling: the default one where it is None.

    Raises:
        StainsslError: the slide has a status other than `ok` or `empty`, which its sentence says;
            there is no such reader; the disk is full.
        OSError: the machine's or the mount's fault.
    """
    tiling = tiling or Tiling()
    try:
        work = partial(_looked_at, path, mpp, reader, tiling)
        lines, outcome = in_time(path, Slides().max_minutes, work)
    except SlideError as late:
        lines, outcome = [], Outcome(path.stem, status=late.status, detail=late.detail)
    yield from lines
    if reader == "auto" and (absent := absent_reader(path)):
        yield f"{absent}, which reads this format, is not installed: {how_to_install(absent)}"
    yield from tiled(outcome, tiling)
    if picture is not None and outcome.picture is not None:
        with disk_faults_told(picture.parent), replacing(picture) as made:
            made.write_bytes(outcome.picture)
        yield f"picture: {picture}"
    status = f"{outcome.status.value}: {outcome.detail}".removesuffix(": ")
    if outcome.status not in (Status.OK, Status.EMPTY):
        of_size = outcome.status in (Status.NO_MPP, Status.ABSURD_MPP)
        raise StainsslError(f"{path}: {status}{' Here that is --mpp.' if of_size else ''}")
    yield f"status: {status}"


def _looked_at(path: Path, mpp: float, reader: str, tiling: Tiling) -> tuple[list[str], Outcome]:
    """Lines about what a slide states of itself, and what tiling makes of it."""
    lines: list[str] = []
    outcome = Outcome(path.stem)
    try:
        require_file(path, path.absolute().parent)
        with open_shared(path, reader, job_threads()) as slide:
            lines += described(slide, mpp)
            tile_slide(outcome, slide, mpp, tiling)
    except SlideError as error:
        outcome.status, outcome.detail = error.status, error.detail
    return lines, outcome


def described(slide: Slide, mpp: float) -> Iterator[str]:
    """Lines about what an open slide states of itself.

    Args:
        mpp: µm in a level-0 px by the user, NaN where they do not say.
    """
    yield f"reader: {slide.reader} (vendor: {slide.vendor or 'not stated'})"
    width, height = slide.level_sizes_px[0]
    yield f"size: {width}×{height} px"
    levels = zip(slide.level_sizes_px, slide.downsamples, strict=True)
    for level, ((width, height), downsample) in enumerate(levels):
        yield f"level {level}: {width}×{height} px, downsample {downsample:g}"
    yield f"µm/px: {_pixel_size(slide, mpp)}"
    power = slide.objective_power
    yield f"objective: {f'{power:g}x' if power else 'not stated'}"
    x, y, width, height = slide.bounds_level0_px
    whole = (x, y, width, height) == (0, 0, *slide.level_sizes_px[0])
    place = "the whole slide" if whole else f"{width}×{height} px from x {x}, y {y}"
    yield f"bounds: {place}"


def _pixel_size(slide: Slide, mpp: float) -> str:
    """The pixel size that is taken and where it was read, with what else is stated."""
    stated = ", ".join(f"{name} {value:.4g}" for name, value in slide.mpp_sources.items())
    try:
        used, source, _ = resolve_mpp(mpp, slide)
    except SlideError:  # the status says why
        return f"none usable (stated: {stated or 'none'})"
    word = "--mpp" if source == "sheet" else source
    return f"{used:.4g} ({word}; stated: {stated or 'none'})"


def tiled(outcome: Outcome, tiling: Tiling) -> Iterator[str]:
    """Lines about light, tissue and tiles, as far as the slide could be read."""
    if outcome.is_brightfield is not None:
        yield f"brightfield: {'yes' if outcome.is_brightfield else 'no'}"
    if outcome.picture is None:
        return
    yield f"tissue: {outcome.tissue_mm2:.4g} mm², mask at {tiling.mask.mpp:g} µm/px"
    counts = dict(outcome.counts)
    kept, places = counts.pop("kept"), sum(outcome.counts.values())
    reasons = [f"{counts.pop(BACKGROUND)} without tissue"]
    reasons += [f"{count} by {reason}" for reason, count in counts.items() if count]
    yield (
        f"tiles: {kept} of {places} kept, {tiling.size} px at {tiling.mpp:g} µm/px; left out: "
        f"{', '.join(reasons)}"
    )
