"""`stainssl cohort statuses`: what happened to each slide of a cohort: table, page, picture."""

from __future__ import annotations

import logging

import pandas as pd

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
    log.info("%s", counted(slides["status"]))
    _write_overview(job, slides)
    write_text(job.page, slides_page(slides, job.cohort))
    with replacing(job.table) as made:
        without_formulas(slides).to_csv(made, index=False, float_format="%.6g")


def counted(statuses: pd.Series) -> str:
    """How many slides ended as what: `36 ok, 2 truncated, 1 no-mpp`."""
    return ", ".join(f"{count} {status}" for status, count in statuses.value_counts().items())


def _write_overview(job: StatusesJob, slides: pd.DataFrame) -> None:
    previews = {
        row.slide_id: job.previews[row.part] / f"{row.slide_id}.png" for row in slides.itertuples()
    }
    with replacing(job.overview) as made:
        tissue_overview(
            previews, dict(zip(slides["slide_id"], slides["status"], strict=True)), made
        )
