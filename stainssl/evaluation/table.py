"""What a benchmark's table is made of: the answers that come in, and the cells that go out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from stainssl.evaluation.predictions import ScoredUnits, read_scored

LINEAR = "linear"  # the head of a tile task
FINE_TUNE = "fine-tune"  # the head of one whose labels the network was trained on
NOTHING = "–"
SEEN_MARK = "†"
FEW_MARK = "‡"


@dataclass(frozen=True)
class Answer:
    """What one encoder, under one seed and with one head, answered to one task.

    Args:
        task, level: the task's name and level.
        encoder: its name in the config; run: with the seed, where there are several.
        head: the head's name; `linear` or `fine-tune` for tile tasks.
        metrics: rows as `evaluate.evaluate` gives.
        predictions: test predictions.
        seen: test patients that its pretraining saw.
        shown: the metrics of the task that are columns of the table, and are compared.
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
        """The predictions as metrics and figures take them, read once."""
        return read_scored(self.predictions, self.level)


@dataclass(frozen=True)
class Robustness:
    """Robustness figures of one encoder under one seed: rows with `task`; confounded test."""

    encoder: str
    run: str
    metrics: pd.DataFrame
    confounded: pd.DataFrame


@dataclass(frozen=True)
class Cell:
    """A cell of the table."""

    text: str = NOTHING
    bold: bool = False
    seen: bool = False
    gray: bool = False


@dataclass(frozen=True)
class ResultGrid:
    """A table as it is shown: a cell per row and column, and the notes under it."""

    columns: list[str]
    rows: list[tuple[str, str]]  # encoder (or its seed), head
    cells: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    names: tuple[str, str] = ("encoder", "head")  # what `rows` are
