"""`stainssl cohort statuses`: collect the status of each slide in a table, page and picture."""

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
    """Write `slides.csv`, `slides.html` and `tissue.png` of a cohort."""
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
    """Write the slides of a cohort as a table and a page, and a picture of all tissue masks.

    Args:
        slides: one row per slide, with columns of the sheet and of `qc`.
        cohort: name of the cohort, for the title of the page.
        previews: part → folder with one PNG per slide.
        table, page, overview: output files (CSV, HTML, PNG).
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
    """Number of slides per status: `36 ok, 2 truncated, 1 no-mpp`."""
    return ", ".join(f"{count} {status}" for status, count in statuses.value_counts().items())
