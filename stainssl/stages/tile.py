"""`stainssl tile`: slides of a part → tiles, what happened to each slide, and pictures of both."""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stainssl.cohort import parts, root
from stainssl.config import Config, Tiling
from stainssl.errors import SlideError, StainsslError, Status
from stainssl.figures.slides import preview
from stainssl.plan.paths import Paths
from stainssl.slides.annotation_files import Areas, read_annotations
from stainssl.slides.annotations import within
from stainssl.slides.errors import require_file
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import enlarged, read_thumbnail, resolve_mpp
from stainssl.slides.slide import Slide
from stainssl.slides.staging import staged
from stainssl.slides.tiling import (
    BACKGROUND,
    COLUMNS,
    REASONS,
    TileLimits,
    counts,
    grid,
    measure,
    tile_table,
)  # fmt: skip
from stainssl.slides.tissue import TissueMap, masked
from stainssl.stores.atomic import replacing
from stainssl.stores.tiles import write_qc, write_tiles

log = logging.getLogger(__name__)

MAX_PATCH_PREVIEWS = 40  # patches of a part that get a picture of their own
MAX_GREY_COLOR = 2  # grey levels between the channels of a picture without color
GREY_SPREAD = 60  # grey levels in a picture below which it may be blank glass
PROBE_PX = 64  # side of the regions read to see whether a level can be read at all


@dataclass
class Outcome:
    """What tiling made of one slide; filled in as far as it got."""

    slide_id: str
    regions: Path | None = None  # outlines in which its tiles stand; None: anywhere
    status: Status = Status.OK
    detail: str = ""
    mpp: float = float("nan")  # µm in a level-0 px
    mpp_source: str = ""
    vendor: str = ""
    reader: str = ""
    levels: list[tuple[int, int]] = field(default_factory=list)
    tissue_mm2: float = float("nan")
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("kept", *REASONS, BACKGROUND), 0)
    )
    seconds: float = 0.0
    tiles: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COLUMNS)))
    picture: Figure | None = None

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
            "levels": json.dumps(self.levels),
            "tissue_mm2": self.tissue_mm2,
            **{f"tiles_{name}": count for name, count in self.counts.items()},
            "seconds": round(self.seconds, 3),
        }


def _limits(tiling: Tiling) -> TileLimits:
    return TileLimits(tiling.min_tissue, **tiling.filters.model_dump())


def _probe(slide: Slide) -> None:
    """Read the corners and the middle of every level, so that a level that fails fails here."""
    x, y, width, height = slide.bounds_level0_px
    for level, downsample in enumerate(slide.downsamples):
        reach = PROBE_PX * downsample
        for share in (0.0, 0.5, 1.0):
            left = x + int(max(0, width - reach) * share)
            top = y + int(max(0, height - reach) * share)
            slide.read_region(left, top, level, (PROBE_PX, PROBE_PX))


def _refuse_grey(thumbnail: np.ndarray) -> None:
    """Raise `unsupported` for a picture without color that is not blank."""
    if np.ptp(thumbnail) > GREY_SPREAD and np.ptp(thumbnail, axis=2).max() <= MAX_GREY_COLOR:
        raise SlideError(
            Status.UNSUPPORTED, "The slide is greyscale: stain cannot be told without color."
        )


def _outlined(path: Path) -> Areas:
    """The outlines in which a slide's tiles stand; a file that says none costs the slide."""
    try:
        return read_annotations(path).areas
    except FileNotFoundError:
        raise SlideError(Status.EMPTY, f"No outlines: {path} does not exist.") from None
    except StainsslError as error:
        raise SlideError(Status.UNREADABLE, str(error)) from error


def _why_empty(outcome: Outcome, tiling: Tiling) -> str:
    if not len(outcome.tiles):
        return f"No tissue was found at {tiling.mask.mpp:g} µm/px."
    reasons = ", ".join(f"{outcome.counts[name]} by {name}" for name in REASONS)
    return f"{outcome.tissue_mm2:.3g} mm² of tissue, and no tile is kept: left out {reasons}."


def _picture(outcome: Outcome, slide: Slide, thumbnail: np.ndarray, tissue: TissueMap) -> Figure:
    title = (
        f"{outcome.slide_id}: {outcome.status.value}, {outcome.mpp:.4g} µm/px "
        f"({outcome.mpp_source}), {outcome.tissue_mm2:.3g} mm² of tissue"
    )
    origin = slide.bounds_level0_px[:2]
    return preview(
        thumbnail, tissue.tissue, tissue.pen, tissue.mpp, outcome.tiles, outcome.mpp, origin, title
    )


def _tile_slide(outcome: Outcome, slide: Slide, sheet_mpp: float, tiling: Tiling) -> None:
    """Mask, tile and picture one open slide into `outcome`."""
    _probe(slide)
    outcome.mpp, outcome.mpp_source, outcome.detail = resolve_mpp(sheet_mpp, slide)
    coarse = enlarged(outcome.mpp, tiling.mpp, tiling.max_enlargement)
    outcome.detail = f"{coarse} {outcome.detail}".strip()
    squares = grid(slide.bounds_level0_px, outcome.mpp, tiling.mpp, tiling.size, tiling.overlap)
    mask = tiling.mask
    mask_mpp = max(mask.mpp, outcome.mpp)  # never finer than the slide is
    thumbnail = read_thumbnail(slide, mask_mpp, outcome.mpp)
    _refuse_grey(thumbnail)
    tissue = masked(thumbnail, mask_mpp, mask.kind, mask.min_area_um2, mask.min_hole_um2)
    outcome.tissue_mm2 = float(tissue.tissue.sum() * mask_mpp**2 / 1e6)
    outcome.tiles = tile_table(slide, outcome.mpp, squares, tissue, _limits(tiling))
    if outcome.regions is not None:
        outcome.tiles = within(outcome.tiles, _outlined(outcome.regions))
    outcome.counts = counts(outcome.tiles, len(squares))
    if not outcome.counts["kept"]:
        outcome.status = Status.EMPTY
        outcome.detail = f"{_why_empty(outcome, tiling)} {outcome.detail}".strip()
    outcome.picture = _picture(outcome, slide, thumbnail, tissue)


def _tile_patch(outcome: Outcome, slide: Slide, sheet_mpp: float, tiling: Tiling) -> None:
    """One tile that covers the largest square at the corner of a patch; no mask, no limits."""
    is_given = not np.isnan(sheet_mpp)
    outcome.mpp, outcome.mpp_source, _ = resolve_mpp(sheet_mpp if is_given else tiling.mpp, slide)
    if not is_given:
        outcome.mpp_source = "tiling"
    _, _, width, height = slide.bounds_level0_px
    side = min(width, height)
    tiles = pd.DataFrame({"tile": [0], "x": [0], "y": [0], "side": [float(side)]})
    measured = measure(slide, tiles, outcome.mpp)
    tiles = tiles.assign(tissue=1.0, pen=0.0, kept=True, reason="", **vars(measured))
    outcome.tiles = tiles[list(COLUMNS)]
    outcome.counts = counts(outcome.tiles, 1)
    outcome.tissue_mm2 = float("nan")


def _patch_picture(outcome: Outcome, slide: Slide) -> Figure:
    """The patch itself under its name."""
    _, _, width, height = slide.bounds_level0_px
    image = slide.read_region(0, 0, 0, (width, height))
    nothing = np.zeros(image.shape[:2], bool)
    title = f"{outcome.slide_id}: {outcome.mpp:.4g} µm/px ({outcome.mpp_source})"
    mpp = outcome.mpp
    return preview(image, nothing, nothing, mpp, outcome.tiles, mpp, (0, 0), title)


def _refuse_missing(error: SlideError, slide_id: str) -> None:
    raise StainsslError(
        f"{slide_id}: {error.detail} Fix the path, exclude the row, or set "
        "slides.on_missing: quarantine."
    ) from error


def _vanished(path: Path, folder: Path) -> tuple[Status, str]:
    """What a slide that was there when it was opened ends as.

    Raises:
        OSError: the mount is gone, or the file is back: trying again helps.
    """
    try:
        require_file(path, folder)
    except SlideError as error:
        return error.status, f"It disappeared while it was read: {error.detail}"
    raise FileNotFoundError(errno.ENOENT, "gone for a moment", str(path))


@dataclass(frozen=True)
class _Job:
    """What is the same for all slides of a part."""

    root: Path
    reader: str
    may_miss: bool  # a missing file is a status
    tiling: Tiling
    regions: str | None  # pattern with {slide_id}
    work: Callable[[Outcome, Slide, float, Tiling], None]
    staging: tuple[Path | None, int] = (None, 0)  # the folder, and the bytes it may hold

    def begun(self, slide_id: str) -> Outcome:
        """The outcome of a slide before anything was done."""
        found = self.regions and Path(self.regions.format(slide_id=slide_id))
        return Outcome(slide_id, regions=found or None)

    def one(self, row: Any, with_patch_picture: bool) -> Outcome:
        """The outcome of a row of the sheet.

        Raises:
            StainsslError: a file is missing and may not be.
            OSError: the machine's or the mount's fault.
        """
        outcome, started = self.begun(str(row.slide_id)), time.monotonic()
        try:
            require_file(Path(row.path), self.root)
            with (
                staged(Path(row.path), *self.staging) as place,
                open_slide(place, self.reader) as slide,
            ):
                outcome.vendor, outcome.reader = slide.vendor, slide.reader
                outcome.levels = list(slide.level_sizes_px)
                self.work(outcome, slide, float(row.mpp), self.tiling)
                if with_patch_picture:
                    outcome.picture = _patch_picture(outcome, slide)
        except SlideError as error:
            if error.status is Status.MISSING and not self.may_miss:
                _refuse_missing(error, outcome.slide_id)
            outcome.status, outcome.detail = error.status, error.detail
        except FileNotFoundError:
            outcome.status, outcome.detail = _vanished(Path(row.path), self.root)
        outcome.seconds = time.monotonic() - started
        return outcome


def _job(config: Config, cohort: str) -> _Job:
    found = config.cohorts[cohort]
    is_patches = found.kind == "patches"
    return _Job(
        root=root(config, cohort),
        reader="patches" if is_patches else config.slides.reader,
        may_miss=config.slides.on_missing == "quarantine",
        tiling=config.tilings[found.tiling],
        regions=found.regions,
        work=_tile_patch if is_patches else _tile_slide,
        staging=config.slides.staging_place(),
    )


def _joined(outcomes: list[Outcome]) -> pd.DataFrame:
    frames = [o.tiles.assign(slide_id=o.slide_id) for o in outcomes if len(o.tiles)]
    return pd.concat(frames, ignore_index=True) if frames else _no_tiles()


def _no_tiles() -> pd.DataFrame:
    return pd.DataFrame(columns=["slide_id", *COLUMNS])


def run(config: Config, cohort: str, part: str) -> None:
    """Write tiles, qc and previews of a part.

    A slide that cannot be used costs that slide: it has a row in qc with its status and a
    sentence, and no tiles.

    Raises:
        StainsslError: a slide is missing and `slides.on_missing` is `error`.
        OSError: the cohort's folder is gone, or the disk, the mount or the memory failed: nothing
            is written, so that the job can be tried again.
    """
    paths, name = Paths(config.results), config.cohorts[cohort].tiling
    job, rows = _job(config, cohort), parts(config, cohort)[part]
    outcomes = []
    with replacing(paths.previews(cohort, name, part)) as folder:
        folder.mkdir()
        for number, row in enumerate(rows.itertuples(index=False)):
            is_pictured = job.work is _tile_patch and number < MAX_PATCH_PREVIEWS
            outcome = job.one(row, is_pictured)
            if outcome.picture is not None:
                outcome.picture.savefig(folder / f"{outcome.slide_id}.png")
                outcome.picture = None
            _tell(outcome)
            outcomes.append(outcome)
        settings = {"tiling": job.tiling.model_dump(mode="json"), "reader": job.reader}
        write_tiles(paths.tiles(cohort, name, part), _joined(outcomes), settings)
        qc = pd.DataFrame([outcome.row() for outcome in outcomes])
        write_qc(paths.qc(cohort, name, part), qc, settings)


def _tell(outcome: Outcome) -> None:
    if outcome.status is Status.OK:
        kept, seconds = outcome.counts["kept"], outcome.seconds
        log.info("%s: %d tiles kept in %.1f s %s", outcome.slide_id, kept, seconds, outcome.detail)
    else:
        log.warning("%s: %s: %s", outcome.slide_id, outcome.status.value, outcome.detail)
