"""`stainssl cohort gate`: whether too many of a cohort's slides are bad."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from stainssl.errors import StainsslError, Status
from stainssl.plan.slides import GateJob
from stainssl.stages.statuses import status_counts
from stainssl.stores.atomic import write_text

MAX_LISTED = 20  # bad slides that a message lists; the file has all


def allowed_bad(slides: int, max_share: float) -> int:
    """How many of so many slides may be bad: the share, rounded up, and below 1 never all of them.

    Rounded up, since a share below one slide would stop a small cohort at its first bad one.
    """
    most = slides if max_share >= 1 else max(slides - 1, 0)
    return min(math.ceil(max_share * slides - 1e-9), most)


def too_many_bad(slides: pd.DataFrame, max_share: float, table: Path) -> str:
    """A message where more slides are bad than `allowed_bad`; else empty.

    Args:
        slides: a row per slide: `slide_id`, `status`, `detail`.
        max_share: 0 to 1.
        table: the file that says what happened to each slide.
    """
    bad = slides[slides["status"] != Status.OK.value]
    allowed = allowed_bad(len(slides), max_share)
    if len(bad) <= allowed:
        return ""
    listed = [f"{row.slide_id}: {row.status}: {row.detail}" for row in bad.itertuples()]
    if (more := len(listed) - MAX_LISTED) > 0:
        listed[MAX_LISTED:] = [f"and {more} more"]
    return "\n".join(
        [
            f"{len(bad)} of {len(slides)} slides are bad ({status_counts(bad['status'])}); "
            f"slides.max_bad_slides ({max_share:g}) allows {allowed}. See {table} for the reasons, "
            "and tissue.png beside it for the others. Fix the slides, exclude them in the sheet, "
            "or raise the limit:",
            *listed,
        ]
    )


def run(job: GateJob) -> None:
    """Write that the cohort passed, and by how much.

    Raises:
        StainsslError: more of the cohort's slides are bad than `slides.max_bad_slides` allows.
    """
    try:
        columns = ["slide_id", "status", "detail"]
        slides = pd.read_csv(job.table, usecols=columns, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise StainsslError(
            f"{job.table} is missing: run `stainssl cohort statuses` first."
        ) from None
    if message := too_many_bad(slides, job.max_bad_slides, job.table):
        raise StainsslError(message)
    bad = int((slides["status"] != Status.OK.value).sum())
    allowed = allowed_bad(len(slides), job.max_bad_slides)
    passed = {"slides": len(slides), "bad": bad, "allowed": allowed}
    write_text(job.gate, json.dumps(passed) + "\n")
