"""Targets of each kind of label: classes, ordered classes, numbers, times to an event.

A kind of label is one entry in `TARGETS` here and one in `evaluation.kinds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import GRADE, VALUE
from stainssl.evaluation.labels import Labels, OrdinalLabels
from stainssl.evaluation.multilabel import MultiLabels, split_labels
from stainssl.evaluation.recalibration import UNCHANGED, Recalibration
from stainssl.evaluation.regression import RegressionLabels
from stainssl.evaluation.survival import SurvivalLabels
from stainssl.evaluation.thresholds import DecisionRule
from stainssl.mil.bags import Bag
from stainssl.mil.cox import Cox
from stainssl.mil.hazard import Hazards
from stainssl.mil.head import Loss, weighted_loss
from stainssl.mil.target import LabelTask, Target


@dataclass(frozen=True)
class Classes(Target):
    """One of C classes: cross-entropy, and a probability per class.

    Attributes:
        names: names of the C classes; if there are two, the second is positive.
        is_balanced: whether all classes have the same weight; otherwise all bags have.
        weights: (C,) class weights; None before `fitted`.
        line: recalibration of the probabilities.
    """

    unknown = -1
    names: tuple[str, ...]
    is_balanced: bool = True
    weights: Tensor | None = None
    line: Recalibration = UNCHANGED

    @property
    def outputs(self) -> int:
        """See `Target.outputs`."""
        return len(self.names)

    def codes(self, words: pd.Series) -> pd.Series:
        """See `Target.codes`: class indices."""
        return words.map(self.names.index)

    def unseen_labels(self, words: Sequence[str]) -> str:
        """See `Target.unseen_labels`: classes other than `names`."""
        found = ", ".join(sorted(set(words) - set(self.names)))
        told = f"classes without training data: {found}; trained: {', '.join(self.names)}"
        return told if found else ""

    def fitted(self, train: Sequence[Bag]) -> Classes:
        """See `Target.fitted`; sets `weights` and raises for fewer than two classes."""
        found = {int(bag.label) for bag in train}
        if len(found) < 2:
            named = ", ".join(self.names[label] for label in sorted(found)) or "none"
            raise StainsslError(
                f"a head needs training bags of at least two classes but got {len(train)} of:"
                f" {named}. Use fewer folds, or stratify the task's split by its label."
            )
        count = len(self.names)
        weights = class_weights(train, count) if self.is_balanced else torch.ones(count)
        return replace(self, weights=weights)

    def loss(self) -> Loss:
        """See `Target.loss`: cross-entropy weighted by class."""
        weights = torch.ones(len(self.names)) if self.weights is None else self.weights
        return partial(weighted_loss, weights=weights)

    def predict(self, outputs: Tensor) -> np.ndarray:
        """See `Target.predict`: probabilities that sum to one."""
        return self.line(torch.softmax(outputs, dim=0).numpy()[None])[0]

    def recalibrated(
        self, rule: DecisionRule, labels: Sequence[float], predictions: np.ndarray
    ) -> Classes:
        """See `Target.recalibrated`."""
        return replace(self, line=rule.recalibration(np.array(labels, np.int64), predictions))

    def prediction_columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """See `Target.prediction_columns`: `p_<class>`."""
        found = {f"p_{name}": predictions[:, i] for i, name in enumerate(self.names)}
        return {name: column.astype(np.float32) for name, column in found.items()}

    def true_values(self, bags: Sequence[Bag]) -> list[str]:
        """See `Target.true_values`: class names, "" if unknown."""
        return [self.names[int(bag.label)] if bag.label >= 0 else "" for bag in bags]

    def thresholds(
        self, rule: DecisionRule, labels: Sequence[float], predictions: np.ndarray
    ) -> dict[str, float]:
        """See `Target.thresholds`; empty unless there are two classes."""
        return rule.thresholds(np.array(labels, np.int64), predictions)

    def to_dict(self) -> dict[str, Any]:
        """See `Target.to_dict`."""
        return {"classes": list(self.names), "recalibration": asdict(self.line)}


@dataclass(frozen=True)
class Ordered(Classes):
    """One of K ordered classes, learnt by CORN.

    Shi, Cao and Raschka, Pattern Analysis and Applications 2023: each of the K - 1 outputs is the
    logit of the probability that a bag lies above a class, given that it does not lie below it.
    Their products decrease from cut to cut, so that no class has a negative probability. All bags
    have the same weight.
    """

    @property
    def outputs(self) -> int:
        """See `Target.outputs`: one per cut between two classes."""
        return len(self.names) - 1

    def fitted(self, train: Sequence[Bag]) -> Ordered:
        """See `Target.fitted`; unchanged, raises for fewer than two classes."""
        super().fitted(train)
        return self

    def loss(self) -> Loss:
        """See `Target.loss`: binary cross-entropy of the cuts a bag reaches, divided by K - 1."""

        def corn(outputs: Tensor, labels: Tensor) -> Tensor:
            cuts = torch.arange(outputs.shape[1])
            above = (labels[:, None] > cuts).to(outputs.dtype)
            reached = (labels[:, None] >= cuts).to(outputs.dtype)
            each = nn.functional.binary_cross_entropy_with_logits(outputs, above, reduction="none")
            return (each * reached).sum(dim=1) / outputs.shape[1]

        return corn

    def predict(self, outputs: Tensor) -> np.ndarray:
        """See `Target.predict`: (K,) probabilities that sum to one."""
        above = torch.cumprod(torch.sigmoid(outputs), dim=0)
        ends = torch.cat([torch.ones(1), above, torch.zeros(1)])
        return (ends[:-1] - ends[1:]).numpy()

    def prediction_columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """See `Target.prediction_columns`: `p_<class>`, and `grade`, the mean rank from 0."""
        grade = (predictions @ np.arange(len(self.names))).astype(np.float32)
        return {**super().prediction_columns(predictions), GRADE: grade}

    def thresholds(
        self, rule: DecisionRule, labels: Sequence[float], predictions: np.ndarray
    ) -> dict[str, float]:
        """See `Target.thresholds`: none, since the median class is predicted."""
        del rule, labels, predictions
        return {}

    def to_dict(self) -> dict[str, Any]:
        """See `Target.to_dict`."""
        return {"ordered": list(self.names)}


@dataclass(frozen=True)
class Number(Target):
    """A number: one output, and Huber's loss on standardized labels.

    Attributes:
        center: mean of the training labels.
        spread: standard deviation of the training labels, positive.
    """

    unknown = float("nan")
    center: float = 0.0
    spread: float = 1.0

    @property
    def outputs(self) -> int:
        """See `Target.outputs`."""
        return 1

    def codes(self, words: pd.Series) -> pd.Series:
        """See `Target.codes`: the numbers."""
        return pd.to_numeric(words).astype(float)

    def unseen_labels(self, words: Sequence[str]) -> str:
        """See `Target.unseen_labels`: every number can be evaluated."""
        del words
        return ""

    def fitted(self, train: Sequence[Bag]) -> Number:
        """See `Target.fitted`; sets mean and standard deviation, raises if all labels are equal."""
        labels = np.array([bag.label for bag in train], float)
        if len(np.unique(labels)) < 2:
            raise StainsslError(
                f"a head needs training bags with different values but got {len(train)} of:"
                f" {', '.join(f'{label:g}' for label in np.unique(labels)) or 'none'}. Use fewer"
                " folds, or add patients."
            )
        return Number(float(labels.mean()), float(labels.std()))

    def loss(self) -> Loss:
        """See `Target.loss`: Huber's, quadratic within one standard deviation."""

        def huber(outputs: Tensor, labels: Tensor) -> Tensor:
            standard = ((labels - self.center) / self.spread).to(outputs.dtype)
            return nn.functional.huber_loss(outputs[:, 0], standard, reduction="none")

        return huber

    def predict(self, outputs: Tensor) -> np.ndarray:
        """See `Target.predict`: the number, in the label's own unit."""
        return (outputs * self.spread + self.center).numpy().astype(np.float32)

    def prediction_columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """See `Target.prediction_columns`: `value`."""
        return {VALUE: predictions[:, 0].astype(np.float32)}

    def true_values(self, bags: Sequence[Bag]) -> list[float]:
        """See `Target.true_values`: the numbers, NaN if unknown."""
        return [float(bag.label) for bag in bags]

    def thresholds(
        self, rule: DecisionRule, labels: Sequence[float], predictions: np.ndarray
    ) -> dict[str, float]:
        """See `Target.thresholds`: none."""
        del rule, labels, predictions
        return {}

    def to_dict(self) -> dict[str, Any]:
        """See `Target.to_dict`."""
        return {"number": {"center": self.center, "spread": self.spread}}


@dataclass(frozen=True)
class MultiLabel(Target):
    """Several labels, each with classes, predicted by one head with the outputs of all labels.

    The loss of a bag is the sum over its known labels, divided by the number of labels: an unknown
    label contributes nothing and does not change the weight of the others. The label of a bag is
    one number for each combination of classes, where a class may be unknown; 0: none is known.

    Attributes:
        parts: name and target of each label.
    """

    unknown = 0
    parts: tuple[tuple[str, Classes], ...]

    @property
    def outputs(self) -> int:
        """See `Target.outputs`: those of all labels."""
        return sum(part.outputs for _, part in self.parts)

    def _slices(self) -> Iterator[tuple[int, str, Classes, slice]]:
        """Yield (position, name, target, its columns of the outputs) of each label."""
        start = 0
        for place, (name, part) in enumerate(self.parts):
            yield place, name, part, slice(start, start + part.outputs)
            start += part.outputs

    def codes(self, words: pd.Series) -> pd.Series:
        """See `Target.codes`: a mixed-radix number, the first label is the least significant digit.

        A digit is the class index plus 1, or 0 if unknown.
        """
        codes, step = pd.Series(0, words.index), 1
        for (_, part), column in zip(self.parts, split_labels(words, len(self.parts)), strict=True):
            places = {name: place for place, name in enumerate(part.names, 1)}
            codes += step * column.map(lambda word, p=places: p.get(word, 0))
            step *= part.outputs + 1
        return codes

    def classes(self, labels: Tensor) -> Tensor:
        """(B,) labels of bags → (B, L) class index of each label, -1 if unknown."""
        rest, found = labels.long(), []
        for _, part in self.parts:
            found.append(rest % (part.outputs + 1) - 1)
            rest = rest // (part.outputs + 1)
        return torch.stack(found, dim=1)

    def unseen_labels(self, words: Sequence[str]) -> str:
        """See `Target.unseen_labels`: for all labels."""
        columns = split_labels(pd.Series(list(words), dtype=object), len(self.parts))
        told = [
            f"of {name!r} {strange}"
            for (name, part), column in zip(self.parts, columns, strict=True)
            if (strange := part.unseen_labels([word for word in column if word]))
        ]
        return "; ".join(told)

    def fitted(self, train: Sequence[Bag]) -> MultiLabel:
        """See `Target.fitted`; every label is fitted to the bags where it is known."""
        parts = []
        for one in self.label_tasks(train, {}, unknown=False):
            assert isinstance(one.target, Classes)
            try:
                parts.append((one.label, one.target.fitted(one.bags)))
            except StainsslError as error:
                raise StainsslError(f"{one.label}: {error}") from None
        return replace(self, parts=tuple(parts))

    def loss(self) -> Loss:
        """See `Target.loss`: sum of the known labels' cross-entropies / number of labels."""

        def known_alone(outputs: Tensor, labels: Tensor) -> Tensor:
            classes, total = self.classes(labels), torch.zeros(len(outputs))
            for place, _, part, columns in self._slices():
                of_label = classes[:, place]
                each = part.loss()(outputs[:, columns], of_label.clamp(min=0))
                total = total + torch.where(of_label >= 0, each, 0.0)
            return total / len(self.parts)

        return known_alone

    def predict(self, outputs: Tensor) -> np.ndarray:
        """See `Target.predict`: probabilities of all labels, which sum to one for each label."""
        return np.concatenate([part.predict(outputs[c]) for _, _, part, c in self._slices()])

    def prediction_columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """Not available: every label has its own columns, see `label_tasks`."""
        raise NotImplementedError

    def true_values(self, bags: Sequence[Bag]) -> list[str]:
        """Not available, see `columns`."""
        raise NotImplementedError

    def label_tasks(
        self, bags: Sequence[Bag], thresholds: Mapping[str, float], unknown: bool
    ) -> Iterator[LabelTask]:
        """See `Target.label_tasks`: each label, with the bags where it is known."""
        classes = self.classes(torch.tensor([bag.label for bag in bags], dtype=torch.long))
        for place, name, part, columns in self._slices():
            labels = classes[:, place].tolist()
            rows = [i for i, label in enumerate(labels) if unknown or label >= 0]
            asked = [replace(bags[i], label=labels[i]) for i in rows]
            own = {
                c.removeprefix(f"{name}/"): v
                for c, v in thresholds.items()
                if c.startswith(f"{name}/")
            }
            yield LabelTask(name, part, asked, rows, columns, own)

    def thresholds(
        self, rule: DecisionRule, labels: Sequence[float], predictions: np.ndarray
    ) -> dict[str, float]:
        """See `Target.thresholds`: of all labels, with keys `LABEL/COLUMN`."""
        classes = self.classes(torch.tensor(labels, dtype=torch.long)).numpy()
        found: dict[str, float] = {}
        for place, name, part, columns in self._slices():
            known = classes[:, place] >= 0
            own = part.thresholds(
                rule, classes[known, place].tolist(), predictions[known][:, columns]
            )
            found |= {f"{name}/{column}": value for column, value in own.items()}
        return found

    def to_dict(self) -> dict[str, Any]:
        """See `Target.to_dict`."""
        return {"labels": {name: part.to_dict() for name, part in self.parts}}

    def recalibrated(
        self, rule: DecisionRule, labels: Sequence[float], predictions: np.ndarray
    ) -> MultiLabel:
        """See `Target.recalibrated`: each label on the bags where it is known."""
        classes = self.classes(torch.tensor(labels, dtype=torch.long)).numpy()
        parts = []
        for place, name, part, columns in self._slices():
            known = classes[:, place] >= 0
            own = part.recalibrated(
                rule, classes[known, place].tolist(), predictions[known][:, columns]
            )
            parts.append((name, own))
        return replace(self, parts=tuple(parts))


def multi_label_target(label: Labels, words: pd.Series, is_balanced: bool) -> MultiLabel:
    """Target of a task with several labels, from their known values."""
    assert isinstance(label, MultiLabels)
    columns = zip(label.each, split_labels(words, len(label.each)), strict=True)
    parts = [(one.label, Classes(tuple(one.order(known)), is_balanced)) for one, known in columns]
    return MultiLabel(tuple(parts))


# Class that reads a task's label → function that creates the target from the known label values.
TARGETS: dict[type[Labels], Callable[[Labels, pd.Series, bool], Target]] = {
    Labels: lambda label, words, is_balanced: Classes(tuple(label.order(words)), is_balanced),
    OrdinalLabels: lambda label, words, _: Ordered(tuple(label.order(words)), is_balanced=False),
    RegressionLabels: lambda label, words, _: Number(),
    SurvivalLabels: lambda label, words, _: Hazards.of(words),
    MultiLabels: multi_label_target,
}


def classes_from_dict(card: Mapping[str, Any]) -> Classes:
    """Restore the target that `Classes.card` wrote."""
    line = Recalibration(**card.get("recalibration", {}))
    return Classes(tuple(card["classes"]), line=line)


# Key in the card of a saved model → function that restores the target.
FROM_DICT: dict[str, Callable[[Any], Target]] = {
    "number": lambda card: Number(**card["number"]),
    "ordered": lambda card: Ordered(tuple(card["ordered"]), is_balanced=False),
    "hazards": lambda card: Hazards(**{k: tuple(v) for k, v in card["hazards"].items()}),
    "cox": lambda card: Cox(**{k: tuple(v) for k, v in card["cox"].items()}),
    "labels": lambda card: MultiLabel(
        tuple((name, classes_from_dict(own)) for name, own in card["labels"].items())
    ),
    "classes": classes_from_dict,
}


def target_of(
    label: Labels, words: pd.Series, is_balanced: bool, hazard: str = "discrete"
) -> Target:
    """Create the target of a task.

    Args:
        label: how the label is read.
        words: the known label values.
        is_balanced: whether all classes have the same weight.
        hazard: `cox` or `discrete`, for times to an event.
    """
    if hazard == "cox":
        return Cox.of(words)
    return TARGETS[type(label)](label, words, is_balanced)


def target_from_dict(card: Mapping[str, Any]) -> Target:
    """Restore the target that `Target.to_dict` wrote."""
    return next(make(card) for key, make in FROM_DICT.items() if key in card)


def class_weights(bags: Sequence[Bag], classes: int) -> Tensor:
    """(C,) float32 weights inverse to class counts, mean 1 over bags; 0 for absent classes."""
    counts = np.bincount([int(bag.label) for bag in bags], minlength=classes).astype(np.float32)
    present = counts > 0
    weights = np.zeros(classes, np.float32)
    weights[present] = len(bags) / (present.sum() * counts[present])
    return torch.from_numpy(weights)
