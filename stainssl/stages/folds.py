"""`folds`: divide the patients of a task into training, validation and test folds."""

from __future__ import annotations

import logging

import pandas as pd

from stainssl.errors import StainsslError
from stainssl.plan.tasks import FoldsJob
from stainssl.stores.atomic import write_text

log = logging.getLogger(__name__)


def run(job: FoldsJob) -> None:
    """Write `folds.csv` of a task; the same sheets and seed give the same file.

    Raises:
        StainsslError: the split is not possible with these sheets.
    """
    try:
        patients, folds = job.label.folds(job.rows, job.level, job.split, job.seed)
    except StainsslError as error:
        raise StainsslError(f"tasks.{job.task}: {error}") from None
    folds.insert(0, "task", job.task)
    write_text(job.folds, folds.to_csv(index=False))
    for line in job.label.summary(job.rows):
        log.info("%s: %s", job.task, line)
    log.info("%s: %d patients in %d folds", job.task, len(patients), _count(folds))


def _count(folds: pd.DataFrame) -> int:
    return len(folds[["repeat", "fold"]].drop_duplicates())
