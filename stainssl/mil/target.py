"""The interface of targets: what a head learns of a kind of label."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from torch import Tensor

from stainssl.evaluation.thresholds import Calls
from stainssl.mil.bags import Bag
from stainssl.mil.head import Loss


@dataclass(frozen=True)
class Question:
    """One label of some bags, predicted and evaluated by itself.

    Attributes:
        label: the column, where a model answers several; else "".
        target: what is said of it.
        bags: those that are asked, labelled.
        rows: their places among the bags that were answered.
        outputs: its columns of the answers.
        cuts: its thresholds, by column of the predictions.
    """

    label: str
    target: Target
    bags: Sequence[Bag]
    rows: Sequence[int]
    outputs: slice
    cuts: Mapping[str, float]


class Target(ABC):
    """What a head learns.

    Attributes:
        unknown: a bag's label that is not known.
        cuts_by_training: whether thresholds are chosen by the training bags too.
        is_joint: whether the loss is of all training bags together, so that a step takes them all.
    """

    unknown: ClassVar[float]
    cuts_by_training: ClassVar[bool] = False
    is_joint: ClassVar[bool] = False

    @property
    @abstractmethod
    def outputs(self) -> int:
        """C, the head's outputs."""

    @abstractmethod
    def codes(self, words: pd.Series) -> pd.Series:
        """The labels of bags, of a label's known words."""

    @abstractmethod
    def strange(self, words: Sequence[str]) -> str:
        """Why some words cannot be evaluated, which training did not have; else empty."""

    @abstractmethod
    def fitted(self, train: Sequence[Bag]) -> Target:
        """The target with what is learnt of the training bags' labels.

        Raises:
            StainsslError: nothing can be learnt of these labels.
        """

    @abstractmethod
    def loss(self) -> Loss:
        """From (B, C) outputs and (B,) labels to (B,) losses."""

    @abstractmethod
    def answer(self, outputs: Tensor) -> np.ndarray:
        """(C,) outputs of a bag → (C,) float32 predictions."""

    @abstractmethod
    def columns(self, answers: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of the predictions, of (B, C) answers."""

    @abstractmethod
    def truth(self, bags: Sequence[Bag]) -> list[Any]:
        """What stands in the predictions' `y`."""

    @abstractmethod
    def cuts(self, calls: Calls, labels: Sequence[float], answers: np.ndarray) -> dict[str, float]:
        """Thresholds by column of the predictions, of B bags of the training part.

        Args:
            calls: how thresholds are chosen.
            labels: B labels of validation bags, of training bags too where `cuts_by_training`.
            answers: (B, C) theirs.
        """

    def with_baseline(self, labels: Sequence[float], outputs: np.ndarray) -> Target:
        """The target with what its answers need of the trained head; most need nothing.

        Args:
            labels: B labels of the training bags.
            outputs: (B, C) what the head gives for them.
        """
        del labels, outputs
        return self

    def recalibrated(self, calls: Calls, labels: Sequence[float], answers: np.ndarray) -> Target:
        """The target recalibrated on validation bags; itself where no recalibration is asked for.

        Args:
            calls: how.
            labels: B labels of the validation bags.
            answers: (B, C) theirs.
        """
        del calls, labels, answers
        return self

    def questions(
        self, bags: Sequence[Bag], cuts: Mapping[str, float], unknown: bool
    ) -> Iterator[Question]:
        """The labels that outputs on some bags predict.

        Args:
            bags: that were answered.
            cuts: as `cuts` gave them.
            unknown: whether bags are kept of which a label is not known.
        """
        del unknown
        yield Question("", self, bags, range(len(bags)), slice(None), cuts)

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """What a saved model keeps of it: JSON types."""
