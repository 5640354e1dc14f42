"""`stainssl cohort statuses`: what happened to each slide of a cohort: table, page, picture."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from stainssl.errors import Status
from stainssl.figures.pages import slides_page
from stainssl.figures.slides import tissue_overview
from stainssl.plan.slides import StatusesJob
from stainssl.stores.atomic import replacing, write_text
from stainssl.stores.tables import without_formulas
from stainssl.stores.tiles import read_qc

log = logging.getLogger(__name__)


def run(job: StatusesJob) -> None:
    """Write the cohort's `slides.csv`, the same as a page, and its picture of tissue masks."""
    qc = pd.concat([read_qc(path) for path in job.qc.values()], ignore_index=True)
    slides = job.rows.merge(qc, on="slide_id", how="left", validate="one_to_one")
    log.info("%s", status_counts(slides["status"]))
    noted = slides[(slides["status"] == Status.OK.value) & (slides["detail"] != "")]
    if len(noted):
        log.warning("%d slides are ok with a note: see %s", len(noted), job.table)
    write_statuses(slides, job.cohort, job.previews, job.table, job.page, job.overview)


def write_statuses(
    slides: pd.DataFrame,
    cohort: str,
    previews: Mapping[str, Path],
    table: Path,
    page: Path,
    overview: Path,
) -> None:
    """Write a cohort's table of slides, the same as a page, and a picture of tissue masks.

    Args:
        slides: columns of the sheet and of `qc`, a row per slide.
        previews: part → the folder with a PNG per slide.
    """
    pictures = {
        row.slide_id: previews[row.part] / f"{row.slide_id}.png" for row in slides.itertuples()
    }
    statuses = dict(zip(slides["slide_id"], slides["status"], strict=True))
    with replacing(overview) as made:
        tissue_overview(pictures, statuses, made)
    write_text(page, slides_page(slides, cohort))
    with replacing(table) as made:
        without_formulas(slides).to_csv(made, index=False, float_format="%.6g")


def status_counts(statuses: pd.Series) -> str:
    """How many slides ended as what: `36 ok, 2 truncated, 1 no-mpp`."""
    return ", ".join(f"{count} {status}" for status, count in statuses.value_counts().items())
