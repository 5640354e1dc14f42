"""The kinds of label that a task may have: what is known of each without reading a slide."""

from __future__ import annotations

from typing import Any, Protocol

from stainssl.evaluation.labels import Labels, OrderedLabels
from stainssl.evaluation.numbers import NumberLabels

LABELS: dict[str, type[Labels]] = {
    "classification": Labels,
    "regression": NumberLabels,
    "ordinal": OrderedLabels,
}


class _Task(Protocol):
    kind: Any
    label: Any
    na: Any
    classes: Any
    positive: Any


def labels_of(task: _Task) -> Labels:
    """How a task reads its label: of a config's task."""
    kind = LABELS[task.kind]
    return kind(task.label, tuple(task.na), dict(task.classes), task.positive)
