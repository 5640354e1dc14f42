"""Interface of targets: how a head is trained on one kind of label, and what it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from torch import Tensor

from stainssl.evaluation.thresholds import DecisionRule
from stainssl.mil.bags import Bag
from stainssl.mil.head import Loss


@dataclass(frozen=True)
class LabelTask:
    """One label of a model, whose predictions are evaluated separately.

    Attributes:
        label: column of the label if the model has several; else "".
        target: the label's target.
        bags: the bags to evaluate, with this label.
        rows: their positions among the predicted bags.
        outputs: the label's columns of the predictions.
        thresholds: its thresholds, by column of `predictions.parquet`.
    """

    label: str
    target: Target
    bags: Sequence[Bag]
    rows: Sequence[int]
    outputs: slice
    thresholds: Mapping[str, float]


class Target(ABC):
    """Loss and predictions of a head for one kind of label.

    Attributes:
        unknown: label of a bag whose label is unknown.
        thresholds_use_training: whether thresholds are chosen on training bags as well.
        is_joint: whether the loss compares all training bags, so that each step takes all of them.
    """

    unknown: ClassVar[float]
    thresholds_use_training: ClassVar[bool] = False
    is_joint: ClassVar[bool] = False

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Number C of outputs of the head."""

    @abstractmethod
    def codes(self, words: pd.Series) -> pd.Series:
        """Encode known label values (text) as labels of bags (see `Bag.label`)."""

    @abstractmethod
    def unseen_labels(self, words: Sequence[str]) -> str:
        """Which label values cannot be evaluated since training did not have them; "" if none."""

    @abstractmethod
    def fitted(self, train: Sequence[Bag]) -> Target:
        """Return the target fitted to the labels of the training bags, before the head is trained.

        Raises:
            StainsslError: nothing can be learnt from these labels.
        """

    @abstractmethod
    def loss(self) -> Loss:
        """Loss function: (B, C) outputs and (B,) labels → (B,) losses."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> np.ndarray:
        """(C,) outputs of a bag → float32 vector of predictions."""

    @abstractmethod
    def prediction_columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of `predictions.parquet` from the predictions of B bags, one row each."""

    @abstractmethod
    def true_values(self, bags: Sequence[Bag]) -> list[Any]:
        """Column `y` of `predictions.parquet`."""

    @abstractmethod
    def thresholds(
        self, rule: DecisionRule, labels: Sequence[float], predictions: np.ndarray
    ) -> dict[str, float]:
        """Choose the thresholds, by column of `predictions.parquet`.

        Args:
            rule: how thresholds are chosen.
            labels: B labels of validation bags; if `thresholds_use_training`, of training bags as
                well.
            predictions: predictions of these bags, B rows.
        """

    def with_baseline(self, labels: Sequence[float], outputs: np.ndarray) -> Target:
        """Return the target with what predictions need from the trained head; nothing by default.

        Args:
            labels: B labels of the training bags.
            outputs: (B, C) outputs of the head for them.
        """
        del labels, outputs
        return self

    def recalibrated(
        self, rule: DecisionRule, labels: Sequence[float], predictions: np.ndarray
    ) -> Target:
        """Return the target recalibrated on validation bags; unchanged by default.

        Args:
            rule: how to recalibrate.
            labels: B labels of the validation bags.
            predictions: (B, C) their predictions.
        """
        del rule, labels, predictions
        return self

    def label_tasks(
        self, bags: Sequence[Bag], thresholds: Mapping[str, float], unknown: bool
    ) -> Iterator[LabelTask]:
        """Yield each label of the model, with the bags to evaluate.

        Args:
            bags: the predicted bags.
            thresholds: thresholds, see `thresholds`.
            unknown: whether to keep bags whose label is unknown, if the model has several labels.
        """
        del unknown
        yield LabelTask("", self, bags, range(len(bags)), slice(None), thresholds)

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The target as JSON types, for a saved model; see `target_from_dict`."""
