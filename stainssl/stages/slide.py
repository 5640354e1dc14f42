"""`slide`: show the properties of one slide and the result of tiling it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stainssl.cohort.installed import absent_reader
from stainssl.config import Slides, Tiling
from stainssl.errors import SlideError, StainsslError, Status, translate_disk_errors
from stainssl.extras import how_to_install
from stainssl.runtime.parallel import job_threads
from stainssl.slides.errors import present_file, run_with_limits
from stainssl.slides.scale import resolve_mpp
from stainssl.slides.shared import open_shared
from stainssl.slides.slide import Slide
from stainssl.slides.tiling import BACKGROUND
from stainssl.stages.tile import TilingResult, tile_slide
from stainssl.stores.atomic import replacing


def run(
    path: Path,
    mpp: float = float("nan"),
    reader: str = "auto",
    picture: Path | None = None,
    tiling: Tiling | None = None,
) -> Iterator[str]:
    """Open and tile one slide as the stage `tile` does.

    Args:
        path: file of the slide.
        mpp: µm/px at level 0, as in a sheet; NaN: as stated in the slide.
        reader: name of the reader.
        picture: PNG to write, with tissue, ink and tiles; only written if a mask was made.
        tiling: tiling settings; None: the defaults.

    Yields:
        Lines of text on the slide; the last one is its status.

    Raises:
        StainsslError: the status is neither `ok` nor `empty`, the reader does not exist, or the
            disk is full.
        OSError: the machine, the disk or the mount failed.
    """
    tiling = tiling or Tiling()
    try:
        work = partial(_looked_at, path, mpp, reader, tiling)
        lines, result = run_with_limits(path, Slides().max_minutes, work)
    except SlideError as late:
        lines, result = [], TilingResult(path.stem, status=late.status, detail=late.detail)
    yield from lines
    if reader == "auto" and (absent := absent_reader(path)):
        yield f"{absent}, which reads this format, is not installed: {how_to_install(absent)}"
    yield from tiling_lines(result, tiling)
    if picture is not None and result.picture is not None:
        with translate_disk_errors(picture.parent), replacing(picture) as made:
            made.write_bytes(result.picture)
        yield f"picture: {picture}"
    status = f"{result.status.value}: {result.detail}".removesuffix(": ")
    if result.status not in (Status.OK, Status.EMPTY):
        of_size = result.status in (Status.NO_MPP, Status.ABSURD_MPP)
        raise StainsslError(f"{path}: {status}{' Here that is --mpp.' if of_size else ''}")
    yield f"status: {status}"


def _looked_at(
    path: Path, mpp: float, reader: str, tiling: Tiling
) -> tuple[list[str], TilingResult]:
    """Describe and tile a slide: lines of text, and the result of tiling."""
    lines: list[str] = []
    result = TilingResult(path.stem)
    try:
        with (
            present_file(path, path.absolute().parent),
            open_shared(path, reader, job_threads()) as slide,
        ):
            lines += slide_lines(slide, mpp)
            tile_slide(result, slide, mpp, tiling)
    except SlideError as error:
        result.status, result.detail = error.status, error.detail
    return lines, result


def slide_lines(slide: Slide, mpp: float) -> Iterator[str]:
    """Lines on the reader, size, levels, pixel size, objective and bounds of an open slide.

    Args:
        slide: open slide.
        mpp: µm/px at level 0 given by the user; NaN if not given.
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
    """The pixel size in use, its source, and all values stated in the slide."""
    stated = ", ".join(f"{name} {value:.4g}" for name, value in slide.mpp_sources.items())
    try:
        used, source, _ = resolve_mpp(mpp, slide)
    except SlideError:  # the reason is in the status
        return f"none usable (stated: {stated or 'none'})"
    word = "--mpp" if source == "sheet" else source
    return f"{used:.4g} ({word}; stated: {stated or 'none'})"


def tiling_lines(result: TilingResult, tiling: Tiling) -> Iterator[str]:
    """Lines on brightfield, tissue and tiles, as far as the slide could be processed."""
    if result.is_brightfield is not None:
        yield f"brightfield: {'yes' if result.is_brightfield else 'no'}"
    if result.picture is None:
        return
    yield f"tissue: {result.tissue_mm2:.4g} mm², mask at {tiling.mask.mpp:g} µm/px"
    counts = dict(result.counts)
    kept, places = counts.pop("kept"), sum(result.counts.values())
    reasons = [f"{counts.pop(BACKGROUND)} without tissue"]
    reasons += [f"{count} by {reason}" for reason, count in counts.items() if count]
    yield (
        f"tiles: {kept} of {places} kept, {tiling.size} px at {tiling.mpp:g} µm/px; left out: "
        f"{', '.join(reasons)}"
    )
