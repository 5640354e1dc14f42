"""`stainssl cohort gate`: the statuses of a cohort's slides, and whether too many are bad."""

from __future__ import annotations

import logging

import pandas as pd

from stainssl.cohort import PART, parts, read_sheet
from stainssl.config import Config
from stainssl.errors import StainsslError, Status
from stainssl.plan.paths import Paths
from stainssl.stores.atomic import replacing
from stainssl.stores.tiles import read_qc

log = logging.getLogger(__name__)


def too_many_bad(slides: pd.DataFrame, max_share: float) -> str:
    """A message that lists the bad slides where their share exceeds `max_share`; else empty.

    Args:
        slides: a row per slide: `slide_id`, `status`, `detail`.
        max_share: 0 to 1.
    """
    bad = slides[slides["status"] != Status.OK.value]
    if len(bad) <= max_share * len(slides):
        return ""
    listed = (f"{row.slide_id}: {row.status}: {row.detail}" for row in bad.itertuples())
    return "\n".join(
        [
            f"{len(bad)} of {len(slides)} slides are bad, more than slides.max_bad_slides "
            f"({max_share:g}) allows. Fix them, exclude them in the sheet, or raise the limit:",
            *listed,
        ]
    )


def run(config: Config, cohort: str) -> None:
    """Write the cohort's `slides.csv` and its picture of tissue masks.

    Raises:
        StainsslError: more than `slides.max_bad_slides` of the cohort's slides are bad.
    """
    paths, tiling = Paths(config.results), config.cohorts[cohort].tiling
    names = list(parts(config, cohort))
    qc = pd.concat([read_qc(paths.qc(cohort, tiling, part)) for part in names], ignore_index=True)
    sheet = read_sheet(config, cohort)[["slide_id", "patient_id", "site", "split", PART]].rename(
        columns={PART: "part"}
    )
    slides = sheet.merge(qc, on="slide_id", how="left", validate="one_to_one")
    counts = slides["status"].value_counts()
    log.info("%s", ", ".join(f"{count} {status}" for status, count in counts.items()))
    if message := too_many_bad(slides, config.slides.max_bad_slides):
        raise StainsslError(message)
    _write_overview(config, cohort, slides)
    with replacing(paths.checked(cohort, tiling)) as made:
        slides.to_csv(made, index=False, float_format="%.6g")


def _write_overview(config: Config, cohort: str, slides: pd.DataFrame) -> None:
    from stainssl.figures.slides import tissue_overview

    paths, tiling = Paths(config.results), config.cohorts[cohort].tiling
    previews = {
        row.slide_id: paths.previews(cohort, tiling, row.part) / f"{row.slide_id}.png"
        for row in slides.itertuples()
    }
    with replacing(paths.overview(cohort, tiling)) as made:
        tissue_overview(
            previews, dict(zip(slides["slide_id"], slides["status"], strict=True)), made
        )
