"""Data classes of a benchmark's table: predictions with their metrics, and cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from stainssl.evaluation.predictions import ScoredUnits, read_scored

LINEAR = "linear"  # name of the head in tile tasks
FINE_TUNE = "fine-tune"  # name of the head if the network was trained on the labels
NOTHING = "–"
SEEN_MARK = "†"
FEW_MARK = "‡"
FEW_PATIENTS = 5  # a site with fewer says little


def people(count: int) -> str:
    """`1 patient`, `12 patients`."""
    return f"{count} patient{'s' * (count != 1)}"


@dataclass(frozen=True)
class TaskResult:
    """Test predictions and metrics of one encoder, seed and head in one task.

    Args:
        task, level: name and level of the task.
        encoder: name in the config.
        run: name of the encoder, with the seed if there are several.
        head: name of the head; `linear` or `fine-tune` for tile tasks.
        metrics: rows as returned by `evaluate.evaluate`.
        predictions: test predictions.
        seen: number of test patients that were used in pretraining.
        shown: metrics of the task that are columns of the table and are compared.
    """

    task: str
    level: str
    encoder: str
    run: str
    head: str
    metrics: pd.DataFrame
    predictions: pd.DataFrame
    seen: int = 0
    shown: Sequence[str] = ("auroc",)

    @cached_property
    def scored(self) -> ScoredUnits:
        """The predictions as `ScoredUnits`, cached."""
        return read_scored(self.predictions, self.level)


@dataclass(frozen=True)
class Robustness:
    """Robustness metrics and predictions of the confounded test, of one encoder and seed.

    Both tables have a column `task`.
    """

    encoder: str
    run: str
    metrics: pd.DataFrame
    confounded: pd.DataFrame


@dataclass(frozen=True)
class Cell:
    """A cell of the table; `seen` and `gray` add a mark."""

    text: str = NOTHING
    bold: bool = False
    seen: bool = False
    gray: bool = False


@dataclass(frozen=True)
class ResultGrid:
    """A table as shown: a cell per row and column, and the notes below it."""

    columns: list[str]
    rows: list[tuple[str, str]]  # encoder (or run), head
    cells: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    names: tuple[str, str] = ("encoder", "head")  # titles of the two columns of `rows`
