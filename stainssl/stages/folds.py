"""`folds`: the sheets of a task → its training, validation and test patients."""

from __future__ import annotations

import logging

import pandas as pd

from stainssl.cohort import read_sheet
from stainssl.config import Config
from stainssl.errors import StainsslError
from stainssl.evaluation.folds import folds_of
from stainssl.evaluation.labels import labels_of
from stainssl.plan.paths import Paths
from stainssl.stores.atomic import write_text

log = logging.getLogger(__name__)


def run(config: Config, task: str) -> None:
    """Write `folds.csv` of a task: the same sheets and seed give the same bytes.

    Raises:
        StainsslError: the sheets do not carry the split, naming the task.
    """
    spec = config.tasks[task]
    slides = pd.concat([read_sheet(config, name) for name in spec.cohorts], ignore_index=True)
    labels = labels_of(spec)
    try:
        slides = labels.read(slides)
        order = labels.order(slides[spec.label]) if spec.label in slides else ()
        patients, folds = folds_of(
            slides, spec.level, spec.label, spec.split, order=order, seed=config.seed
        )
    except StainsslError as error:
        raise StainsslError(f"tasks.{task}: {error}") from None
    folds.insert(0, "task", task)
    write_text(Paths(config.results).folds(task), folds.to_csv(index=False))
    log.info("%s: %d patients in %d folds", task, len(patients), _count(folds))


def _count(folds: pd.DataFrame) -> int:
    return len(folds[["repeat", "fold"]].drop_duplicates())
