"""`cohort check --open`: open and tile every slide of a cohort before a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from stainssl.config import Config
from stainssl.errors import StainsslError, Status, translate_disk_errors
from stainssl.plan.slides import TileJob, statuses, tile
from stainssl.runtime.parallel import job_threads, parallel_map
from stainssl.stages.gate import too_many_bad
from stainssl.stages.statuses import status_counts, write_statuses
from stainssl.stages.tile import TilingResult, tile_row

log = logging.getLogger(__name__)

MAX_NAMED = 5  # slides listed for a note that they share
SlideTask = tuple[TileJob, Path, int, Any]  # job, picture folder, index in the part, row of a slide


def run(config: Config, cohort: str, folder: Path) -> Iterator[str]:
    """Open and tile all slides of a cohort as `tile` does, without writing under `results`.

    Writes `slides.csv`, `slides.html`, `tissue.png` and `previews/` in the folder. A slide that
    cannot be used gets a status, and the others are processed.

    Args:
        config: the config.
        cohort: name of the cohort.
        folder: output folder.

    Yields:
        Lines that summarise the slides.

    Raises:
        StainsslError: more slides are bad than `slides.max_bad_slides` allows, or the disk is full.
        OSError: the machine, the disk or the mount failed.
    """
    if config.cohorts[cohort].demo is not None:
        yield f"{cohort}: the synthetic cohort is made during the run; nothing was opened"
        return
    job = statuses(config, cohort)
    previews = {part: folder / "previews" / part for part in job.previews}
    asked = chain.from_iterable(_slides_of(config, cohort, *part) for part in previews.items())
    table, page, overview = (folder / name for name in ("slides.csv", "slides.html", "tissue.png"))
    with translate_disk_errors(folder):
        found = [_kept(*opened) for opened in parallel_map(_opened, asked, job_threads())]
        slides = job.rows.merge(pd.DataFrame(found), on="slide_id", validate="one_to_one")
        write_statuses(slides, cohort, previews, table, page, overview)
    yield f"{cohort}: {status_counts(slides['status'])}"
    yield from _summary(slides)
    yield f"  each slide: {page}"
    if message := too_many_bad(slides, config.slides.max_bad_slides, table):
        raise StainsslError(f"{cohort}: {message}")


def _slides_of(config: Config, cohort: str, part: str, folder: Path) -> Iterator[SlideTask]:
    job = replace(tile(config, cohort, part), may_miss=True)  # a missing file is a status here
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(job.rows.itertuples(index=False)):
        yield job, folder, number, row


def _opened(asked: SlideTask) -> tuple[Path, TilingResult]:
    job, folder, number, row = asked
    return folder, tile_row(job, row, number)


def _kept(folder: Path, result: TilingResult) -> dict[str, Any]:
    """Write the picture of one slide and return its row, without its tiles, to save memory."""
    if result.picture is not None:
        (folder / f"{result.slide_id}.png").write_bytes(result.picture)
    log.info("%s: %s %s", result.slide_id, result.status.value, result.detail)
    return result.row()


def _summary(slides: pd.DataFrame) -> Iterator[str]:
    """Lines on the usable slides together, on notes, and on each unusable slide."""
    usable = slides[slides["status"] == Status.OK.value]
    if len(usable):
        yield f"  {int(usable['tiles_kept'].sum())} tiles kept in {len(usable)} slides"
        scales = usable.groupby("mpp_source")["mpp"].agg(["size", "min", "max"])
        for source, (count, least, most) in scales.iterrows():
            span = f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
            yield f"  {span} µm/px in {int(count)}, from {source}"
    yield from _notes(usable)
    for row in slides[slides["status"] != Status.OK.value].itertuples():
        yield f"  {row.slide_id}: {row.status}: {row.detail}"


def _notes(usable: pd.DataFrame) -> Iterator[str]:
    """One line per note on usable slides, with the names of a few of them."""
    noted = usable[usable["detail"] != ""]
    for detail, rows in noted.groupby("detail", sort=False):
        names = ", ".join(rows["slide_id"].head(MAX_NAMED))
        more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
        yield f"  {names}{more}: ok, but: {detail}"
