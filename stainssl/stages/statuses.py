"""`stainssl cohort statuses`: what happened to each slide of a cohort: table, page, picture."""

from __future__ import annotations

import logging

import pandas as pd

from stainssl.cohort import PART, parts, read_sheet
from stainssl.config import Config
from stainssl.figures.pages import slides_page
from stainssl.figures.slides import tissue_overview
from stainssl.plan.paths import Paths
from stainssl.stores.atomic import replacing, write_text
from stainssl.stores.tiles import read_qc

log = logging.getLogger(__name__)


def run(config: Config, cohort: str) -> None:
    """Write the cohort's `slides.csv`, the same as a page, and its picture of tissue masks."""
    paths, tiling = Paths(config.results), config.cohorts[cohort].tiling
    names = list(parts(config, cohort))
    qc = pd.concat([read_qc(paths.qc(cohort, tiling, part)) for part in names], ignore_index=True)
    sheet = read_sheet(config, cohort)[["slide_id", "patient_id", "site", "split", PART]]
    sheet = sheet.rename(columns={PART: "part"})
    slides = sheet.merge(qc, on="slide_id", how="left", validate="one_to_one")
    log.info("%s", counted(slides["status"]))
    _write_overview(config, cohort, slides)
    write_text(paths.slides_page(cohort, tiling), slides_page(slides, cohort))
    with replacing(paths.checked(cohort, tiling)) as made:
        slides.to_csv(made, index=False, float_format="%.6g")


def counted(statuses: pd.Series) -> str:
    """How many slides ended as what: `36 ok, 2 truncated, 1 no-mpp`."""
    return ", ".join(f"{count} {status}" for status, count in statuses.value_counts().items())


def _write_overview(config: Config, cohort: str, slides: pd.DataFrame) -> None:
    paths, tiling = Paths(config.results), config.cohorts[cohort].tiling
    previews = {
        row.slide_id: paths.previews(cohort, tiling, row.part) / f"{row.slide_id}.png"
        for row in slides.itertuples()
    }
    with replacing(paths.overview(cohort, tiling)) as made:
        tissue_overview(
            previews, dict(zip(slides["slide_id"], slides["status"], strict=True)), made
        )
