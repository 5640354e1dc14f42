"""`stainssl cohort gate`: fail if too many slides of a cohort are bad."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from stainssl.errors import StainsslError, Status
from stainssl.plan.slides import GateJob
from stainssl.stages.statuses import status_counts
from stainssl.stores.atomic import write_text

MAX_LISTED = 20  # bad slides listed in the message; the table has all


def allowed_bad(slides: int, max_share: float) -> int:
    """Number of slides that may be bad: `max_share` of them, rounded up.

    If `max_share` is below 1, this is never all of them. It is rounded up because otherwise a small
    cohort would fail at its first bad slide.
    """
    most = slides if max_share >= 1 else max(slides - 1, 0)
    return min(math.ceil(max_share * slides - 1e-9), most)


def too_many_bad(slides: pd.DataFrame, max_share: float, table: Path) -> str:
    """Error message if more slides are bad than `allowed_bad`; otherwise empty.

    Args:
        slides: one row per slide: `slide_id`, `status`, `detail`.
        max_share: 0 to 1.
        table: file with the status of each slide, named in the message.
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
    """Write `gate.json` with the numbers of `slides`, `bad` and `allowed` ones.

    Raises:
        StainsslError: more slides are bad than `slides.max_bad_slides` allows, or the table of
            slides is missing.
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
