"""The kinds of label that a task may have, and the class that reads each of them."""

from __future__ import annotations

from typing import Any, Protocol

from stainssl.evaluation.labels import Labels, OrderedLabels, SeveralKeys
from stainssl.evaluation.numbers import NumberLabels
from stainssl.evaluation.several import SeveralLabels
from stainssl.evaluation.survival import SurvivalLabels

LABELS: dict[str, type[Labels]] = {
    "classification": Labels,
    "regression": NumberLabels,
    "ordinal": OrderedLabels,
    "survival": SurvivalLabels,
}


class _Task(SeveralKeys, Protocol):
    kind: Any


def labels_of(task: _Task) -> Labels:
    """How the label of a task of the config is read."""
    return SeveralLabels.of(task) if task.labels else LABELS[task.kind].of(task)
