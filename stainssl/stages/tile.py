"""`stainssl tile`: find tissue and tiles on the slides of a part, with a status for each slide."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from stainssl.config import Tiling
from stainssl.errors import SlideError, StainsslError, Status
from stainssl.figures.slides import preview
from stainssl.plan.slides import TileJob
from stainssl.runtime.parallel import TimeSpent, job_threads, library_threads, parallel_map
from stainssl.slides.annotation_files import Areas, read_annotations
from stainssl.slides.annotations import discard_outside
from stainssl.slides.brightfield import (
    channel_range,
    is_brightfield,
    light_fault,
    require_brightfield,
)
from stainssl.slides.errors import present_file, run_with_limits
from stainssl.slides.frames import Frame, in_slide, origin_of
from stainssl.slides.glass import brightest_smooth_area
from stainssl.slides.other_stains import not_h_and_e, pictures_fault
from stainssl.slides.scale import check_enlargement, read_thumbnail, resolve_mpp
from stainssl.slides.shared import open_shared
from stainssl.slides.slide import Slide
from stainssl.slides.staging import staged
from stainssl.slides.tiling import (
    BACKGROUND,
    COLUMNS,
    REASON_WORDS,
    REASONS,
    TileLimits,
    counts,
    grid,
    measure_tiles,
    tile_table,
)  # fmt: skip
from stainssl.slides.tissue import TissueMap, segment_tissue
from stainssl.slides.unchanged import NOT_OPENED, SlideFingerprint
from stainssl.stores.atomic import replacing
from stainssl.stores.tiles import write_qc, write_tiles

log = logging.getLogger(__name__)

MAX_PATCH_PREVIEWS = 8  # patches of a part for which a picture is drawn
MAX_GREY_COLOR = 2  # grey levels between the channels of an image without color
GREY_SPREAD = 60  # range of grey levels up to which an image may be blank glass
# A note says that a patch differs from a tile of the tiling if a smaller share of it is used, or if
# its scale differs more.
MIN_SHARE_USED = 0.95
MAX_SCALE_ERROR = 0.05
PNG_LEVEL = 1  # of a preview: a photograph hardly shrinks further, and 6 takes thrice as long
MAX_COLORED_PATCHES = 1000  # patches of a part whose colors are checked together
COLORS_MPP = 4.0  # µm/px for this check; at finer scales JPEG noise outweighs the stains
PROBE_PX = 64  # side of the regions read to check that a level can be read


@dataclass
class TilingResult:
    """Result of tiling one slide, filled in as far as tiling got."""

    slide_id: str
    regions: Path | None = None  # file of the outlines that tiles must lie in; None: anywhere
    regions_frame: Frame = "auto"  # origin of their coordinates
    status: Status = Status.OK
    detail: str = ""
    mpp: float = float("nan")  # µm/px at level 0
    mpp_source: str = ""
    vendor: str = ""
    reader: str = ""
    fingerprint: SlideFingerprint = NOT_OPENED
    bounds_level0_px: tuple[int, int, int, int] = (0, 0, 0, 0)
    is_brightfield: bool | None = None  # None: not checked
    tissue_mm2: float = float("nan")
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("kept", *REASONS, BACKGROUND), 0)
    )
    seconds: float = 0.0
    spent: TimeSpent = field(default_factory=TimeSpent)
    tiles: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COLUMNS)))
    picture: bytes | None = None  # a PNG
    overview: np.ndarray | None = None  # (h, w, 3) uint8, of a patch whose colors are checked

    def row(self) -> dict[str, Any]:
        """The slide's row of the `qc` table."""
        return {
            "slide_id": self.slide_id,
            "status": self.status.value,
            "detail": self.detail,
            "mpp": self.mpp,
            "mpp_source": self.mpp_source,
            "vendor": self.vendor,
            "reader": self.reader,
            "levels": self.fingerprint.levels,
            "bounds": json.dumps(self.bounds_level0_px),
            "size_bytes": self.fingerprint.size_bytes,
            "content": self.fingerprint.content,
            "tissue_mm2": self.tissue_mm2,
            **{f"tiles_{name}": count for name, count in self.counts.items()},
            "seconds": round(self.seconds, 3),
        }


def _limits(tiling: Tiling) -> TileLimits:
    return TileLimits(tiling.min_tissue, **tiling.filters.model_dump())


def _probe(slide: Slide) -> None:
    """Read two corners and the middle of every level, so that a broken level fails here."""
    x, y, width, height = slide.bounds_level0_px
    for level, downsample in enumerate(slide.downsamples):
        reach = PROBE_PX * downsample
        for share in (0.0, 0.5, 1.0):
            left = x + int(max(0, width - reach) * share)
            top = y + int(max(0, height - reach) * share)
            slide.read_region(left, top, level, (PROBE_PX, PROBE_PX))


def _refuse_grey(least: np.ndarray, most: np.ndarray) -> None:
    """Raise `unsupported` for a grayscale image that is not blank, given its `channel_range`."""
    spread = int(most.max()) - int(least.min())
    if spread > GREY_SPREAD and (most - least).max() <= MAX_GREY_COLOR:
        raise SlideError(Status.UNSUPPORTED, "The slide is grayscale: stain analysis needs color.")


def _outlined(result: TilingResult, slide: Slide) -> Areas:
    """Read the outlines that tiles must lie in, in level-0 px of the slide.

    Raises:
        SlideError: `empty` without a file, `unreadable` if it cannot be read.
    """
    path = result.regions
    assert path is not None
    try:
        areas = read_annotations(path).areas
    except FileNotFoundError:
        raise SlideError(Status.EMPTY, f"No outlines: {path} does not exist.") from None
    except StainsslError as error:
        raise SlideError(Status.UNREADABLE, str(error)) from error
    return in_slide(areas, origin_of(path, result.regions_frame, slide.bounds_level0_px))


def _why_empty(result: TilingResult, tiling: Tiling) -> str:
    if not len(result.tiles):
        return f"No tissue found at {tiling.mask.mpp:g} µm/px."
    counts = sorted(((result.counts[name], REASON_WORDS[name]) for name in REASONS), reverse=True)
    reasons = ", ".join(f"{count} {words}" for count, words in counts if count)
    return f"{result.tissue_mm2:.3g} mm² of tissue, but no tile kept: {reasons}."


def _png(picture: Image.Image) -> bytes:
    made = BytesIO()
    picture.save(made, "PNG", compress_level=PNG_LEVEL)
    return made.getvalue()


def _picture(result: TilingResult, slide: Slide, thumbnail: np.ndarray, tissue: TissueMap) -> bytes:
    """The preview as a PNG."""
    title = (
        f"{result.slide_id}: {result.status.value}, {result.mpp:.4g} µm/px "
        f"({result.mpp_source}), {result.tissue_mm2:.3g} mm² of tissue"
    )
    origin = slide.bounds_level0_px[:2]
    masks = tissue.tissue, tissue.ink
    tiles = result.tiles, result.mpp
    return _png(preview(thumbnail, *masks, tissue.mpp, *tiles, origin, title))


def tile_slide(result: TilingResult, slide: Slide, sheet_mpp: float, tiling: Tiling) -> None:
    """Find tissue and tiles of one open slide and draw its picture.

    Args:
        result: filled in as far as the slide can be processed.
        slide: open slide.
        sheet_mpp: µm/px at level 0 from the sheet; NaN if not given.
        tiling: tiling settings.

    Raises:
        SlideError: the slide cannot be used; `result` has what was found before.
        OSError: the machine, the disk or the mount failed.
    """
    with result.spent.on("reading"):
        _probe(slide)
    result.mpp, result.mpp_source, result.detail = resolve_mpp(sheet_mpp, slide)
    coarse = check_enlargement(result.mpp, tiling.mpp, tiling.max_enlargement)
    result.detail = f"{coarse} {result.detail}".strip()
    squares = grid(slide.bounds_level0_px, result.mpp, tiling.mpp, tiling.size, tiling.overlap)
    mask = tiling.mask
    mask_mpp = max(mask.mpp, result.mpp)  # not finer than the slide
    with result.spent.on("reading"):
        thumbnail = read_thumbnail(slide, mask_mpp, result.mpp)
    channels = channel_range(thumbnail)
    ground = brightest_smooth_area(thumbnail)
    result.is_brightfield = is_brightfield(*channels, ground)
    require_brightfield(*channels, ground)
    _refuse_grey(*channels)
    areas_um2 = mask.min_area_um2, mask.min_hole_um2
    with result.spent.on("mask"):
        tissue = segment_tissue(thumbnail, mask_mpp, mask.kind, *areas_um2, threads=slide.readers)
    result.tissue_mm2 = float(np.count_nonzero(tissue.tissue) * mask_mpp**2 / 1e6)
    told = light_fault(thumbnail, tissue, ground) or not_h_and_e(thumbnail, tissue)
    result.detail = f"{told} {result.detail}".strip()
    with result.spent.on("reading and measuring tiles"):
        result.tiles = tile_table(slide, result.mpp, squares, tissue, _limits(tiling))
    if result.regions is not None:
        result.tiles = discard_outside(result.tiles, _outlined(result, slide))
    result.counts = counts(result.tiles, len(squares))
    if not result.counts["kept"]:
        result.status = Status.EMPTY
        result.detail = f"{_why_empty(result, tiling)} {result.detail}".strip()
    with result.spent.on("picture"):
        result.picture = _picture(result, slide, thumbnail, tissue)


def _tile_patch(
    result: TilingResult, slide: Slide, sheet_mpp: float, tiling: Tiling, is_cut: bool
) -> None:
    """Find the tiles of a patch, without a mask or limits: all are kept.

    A patch is one tile, its largest square from the upper left corner; if `is_cut`, it is cut into
    tiles at the tiling's scale.
    """
    is_given = not np.isnan(sheet_mpp)
    result.mpp, result.mpp_source, _ = resolve_mpp(sheet_mpp if is_given else tiling.mpp, slide)
    if not is_given:
        result.mpp_source = "tiling"
    if is_cut:
        result.detail = check_enlargement(result.mpp, tiling.mpp, tiling.max_enlargement)
        bounds = slide.bounds_level0_px
        squares = grid(bounds, result.mpp, tiling.mpp, tiling.size, tiling.overlap)
        x, y = squares.corners()
        tiles = pd.DataFrame({"tile": np.arange(len(x)), "x": x, "y": y})
        tiles["side"] = squares.side_level0_px
    else:
        side = float(min(slide.bounds_level0_px[2:]))
        tiles = pd.DataFrame({"tile": [0], "x": [0], "y": [0], "side": [side]})
        result.detail = _is_no_tile(result, slide, side, tiling)
    with result.spent.on("reading and measuring tiles"):
        measured = measure_tiles(slide, tiles, result.mpp)
    tiles = tiles.assign(tissue=1.0, pen=0.0, kept=True, reason="", **vars(measured))
    result.tiles = tiles[list(COLUMNS)]
    result.counts = counts(result.tiles, len(tiles))
    result.tissue_mm2 = float("nan")


def _is_no_tile(result: TilingResult, slide: Slide, side_level0_px: float, tiling: Tiling) -> str:
    """Note if the square used of a patch differs from a tile of the tiling; otherwise empty."""
    _, _, width, height = slide.bounds_level0_px
    share, mpp = side_level0_px**2 / (width * height), side_level0_px * result.mpp / tiling.size
    is_other_scale = abs(mpp / tiling.mpp - 1) > MAX_SCALE_ERROR
    if share >= MIN_SHARE_USED and not is_other_scale:
        return ""
    scale = f", at {mpp:.3g} µm/px instead of {tiling.mpp:g}" if is_other_scale else ""
    return (
        f"One tile of {share:.0%} of the image ({width}×{height} px){scale}. Set `patches: cut` "
        "for the cohort to cut images into tiles at the tiling's scale."
    )


def _patch_picture(result: TilingResult, slide: Slide) -> bytes:
    """The patch with a title, as a PNG."""
    _, _, width, height = slide.bounds_level0_px
    image = slide.read_region(0, 0, 0, (width, height))
    nothing = np.zeros(image.shape[:2], bool)
    title = f"{result.slide_id}: {result.mpp:.4g} µm/px ({result.mpp_source})"
    mpp = result.mpp
    return _png(preview(image, nothing, nothing, mpp, result.tiles, mpp, (0, 0), title))


def refuse_missing(error: SlideError, slide_id: str, may_miss: bool) -> None:
    """Raise a `StainsslError` that says what to do if a slide is missing and may not be."""
    if may_miss or error.status is not Status.MISSING:
        return
    raise StainsslError(
        f"{slide_id}: {error.detail} Fix the path, exclude the row, or set "
        "slides.on_missing: quarantine."
    ) from error


def tile_row(job: TileJob, row: Any, number: int) -> TilingResult:
    """Tile the slide or patch of one row of `job.rows`, without writing anything.

    Args:
        job: the job.
        row: row of `job.rows`, as a named tuple.
        number: index of the row; pictures are only drawn of the first patches.

    Raises:
        StainsslError: the file is missing, and the job does not allow this.
        OSError: the machine, the disk or the mount failed.
    """
    started = time.monotonic()
    try:
        result = run_with_limits(
            Path(row.path), job.max_minutes, partial(_tile_row, job, row, number)
        )
    except SlideError as late:  # a new result, since an abandoned thread may still change its own
        result = TilingResult(str(row.slide_id), status=late.status, detail=late.detail)
    result.seconds = time.monotonic() - started
    return result


def _tile_row(job: TileJob, row: Any, number: int) -> TilingResult:
    regions = job.regions and Path(job.regions.format(slide_id=row.slide_id))
    result = TilingResult(str(row.slide_id), regions or None, job.regions_frame)
    try:
        with (
            present_file(Path(row.path), job.root),
            staged(Path(row.path), *job.staging) as place,
            open_shared(place, job.reader, _threads_of_slide(job)) as slide,
        ):
            _work(job, result, slide, float(row.mpp), number)
    except SlideError as error:
        refuse_missing(error, result.slide_id, job.may_miss)
        result.status, result.detail = error.status, error.detail
    return result


def _threads_of_slide(job: TileJob) -> int:
    """Threads per slide: more than one if the part has fewer slides than the job has threads."""
    return max(1, job_threads() // max(1, len(job.rows)))


def _work(job: TileJob, result: TilingResult, slide: Slide, sheet_mpp: float, number: int) -> None:
    """Tile one open slide or patch and draw its picture, filling in `result`."""
    result.vendor, result.reader = slide.vendor, slide.reader
    result.fingerprint = SlideFingerprint.of(slide.path, slide)
    result.bounds_level0_px = slide.bounds_level0_px
    if job.kind != "patches":
        tile_slide(result, slide, sheet_mpp, job.tiling)
        return
    _tile_patch(result, slide, sheet_mpp, job.tiling, job.patches == "cut")
    if number < MAX_COLORED_PATCHES:
        result.overview = read_thumbnail(slide, max(COLORS_MPP, result.mpp), result.mpp)
    if number < MAX_PATCH_PREVIEWS:
        result.picture = _patch_picture(result, slide)


def _joined(results: list[TilingResult]) -> pd.DataFrame:
    frames = [r.tiles.assign(slide_id=r.slide_id) for r in results if len(r.tiles)]
    return pd.concat(frames, ignore_index=True) if frames else _no_tiles()


def _no_tiles() -> pd.DataFrame:
    return pd.DataFrame(columns=["slide_id", *COLUMNS])


def run(job: TileJob) -> None:
    """Write the tables of tiles and slides (`qc`) of a part, and its previews.

    A slide that cannot be used has no tiles, and a row in `qc` with its status and the reason.

    Raises:
        StainsslError: a slide is missing and `slides.on_missing` is `error`.
        OSError: the cohort's folder is gone, or the disk, the mount or the memory failed. Nothing
            is written, so that the job can be retried.
    """
    results, spent = [], TimeSpent()
    rows = enumerate(job.rows.itertuples(index=False))
    opencv = library_threads(cv2.getNumThreads, cv2.setNumThreads, _threads_of_slide(job))
    with replacing(job.previews) as folder, opencv:
        folder.mkdir()
        for result in parallel_map(partial(_numbered, job), rows, job_threads()):
            if result.picture is not None:
                (folder / f"{result.slide_id}.png").write_bytes(result.picture)
                result.picture = None
            _tell(result, logging.DEBUG if job.kind == "patches" else logging.INFO)
            spent.include(result.spent)
            results.append(result)
        _tell_no_tiles(results, job)
        _tell_colors(results)
        settings = {"tiling": job.tiling.model_dump(mode="json"), "reader": job.reader}
        with spent.on("writing"):
            write_tiles(job.tiles, _joined(results), settings)
            write_qc(job.qc, pd.DataFrame([result.row() for result in results]), settings)
    log.info("%s", spent.line(len(results), "slides"))


def _numbered(job: TileJob, row: tuple[int, Any]) -> TilingResult:
    return tile_row(job, row[1], row[0])


def _tell(result: TilingResult, level: int) -> None:
    """Log one line per slide; usable patches, of which there may be 100,000, at level DEBUG."""
    if result.status is Status.OK:
        said = result.slide_id, result.counts["kept"], result.seconds, result.detail
        if result.detail and level == logging.INFO:
            level = logging.WARNING
        log.log(level, "%s: %d tiles kept in %.1f s %s", *said)
    else:
        log.warning("%s: %s: %s", result.slide_id, result.status.value, result.detail)


def _tell_no_tiles(results: list[TilingResult], job: TileJob) -> None:
    """Log one line for all patches of a part that differ from tiles of the tiling."""
    told = [r for r in results if r.status is Status.OK and r.detail]
    if job.kind == "patches" and told:
        shown, count = told[0], len(results)
        log.warning("%d of %d: as %s: %s", len(told), count, shown.slide_id, shown.detail)


def _tell_colors(results: list[TilingResult]) -> None:
    """Add a note to all patches of a part if, taken together, they cannot be H&E."""
    looked_at = [r.overview.reshape(-1, 3) for r in results if r.overview is not None]
    told = pictures_fault(np.concatenate(looked_at)) if looked_at else ""
    if not told:
        return
    log.warning("%d images of the part, taken together: %s", len(looked_at), told)
    for result in results:
        if result.status is Status.OK:
            result.detail = f"The part's images together: {told} {result.detail}".strip()
