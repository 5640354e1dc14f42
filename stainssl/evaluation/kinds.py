"""The kinds of label that a task may have, and the class that reads each of them."""

from __future__ import annotations

from typing import Any, Protocol

from stainssl.evaluation.labels import Labels, MultiLabelKeys, OrdinalLabels
from stainssl.evaluation.multilabel import MultiLabels
from stainssl.evaluation.regression import RegressionLabels
from stainssl.evaluation.survival import SurvivalLabels

LABELS: dict[str, type[Labels]] = {
    "classification": Labels,
    "regression": RegressionLabels,
    "ordinal": OrdinalLabels,
    "survival": SurvivalLabels,
}


class _Task(MultiLabelKeys, Protocol):
    kind: Any


def labels_of(task: _Task) -> Labels:
    """How the label of a task of the config is read."""
    return MultiLabels.of(task) if task.labels else LABELS[task.kind].of(task)
