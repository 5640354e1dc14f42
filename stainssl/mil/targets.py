"""What heads learn of each kind of label: classes, ordered classes, numbers, times to an event.

A kind of label is a line in `TARGETS` here and one in `evaluation.kinds`.
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
from stainssl.evaluation.labels import Labels, OrderedLabels
from stainssl.evaluation.numbers import NumberLabels
from stainssl.evaluation.recalibration import UNCHANGED, Recalibration
from stainssl.evaluation.several import SeveralLabels, apart
from stainssl.evaluation.survival import SurvivalLabels
from stainssl.evaluation.thresholds import Calls
from stainssl.mil.bags import Bag
from stainssl.mil.cox import Cox
from stainssl.mil.hazard import Hazards
from stainssl.mil.head import Loss, weighted_loss
from stainssl.mil.target import Question, Target


@dataclass(frozen=True)
class Classes(Target):
    """One of C classes: cross-entropy, a probability each.

    Attributes:
        names: C class words; of two, the second is positive.
        is_balanced: whether classes weigh the same; else every bag does.
        weights: (C,) of the classes; None: not fitted yet.
        line: the recalibration of the probabilities.
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
        """See `Target.codes`: the index of the class."""
        return words.map(self.names.index)

    def strange(self, words: Sequence[str]) -> str:
        """See `Target.strange`: classes that are none of the names."""
        found = ", ".join(sorted(set(words) - set(self.names)))
        told = f"classes without training data: {found}; trained: {', '.join(self.names)}"
        return told if found else ""

    def fitted(self, train: Sequence[Bag]) -> Classes:
        """See `Target.fitted`: with the classes' weights."""
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
        """See `Target.loss`: cross-entropy, each times the weight of its class."""
        weights = torch.ones(len(self.names)) if self.weights is None else self.weights
        return partial(weighted_loss, weights=weights)

    def answer(self, outputs: Tensor) -> np.ndarray:
        """See `Target.answer`: probabilities that sum to one."""
        return self.line(torch.softmax(outputs, dim=0).numpy()[None])[0]

    def recalibrated(self, calls: Calls, labels: Sequence[float], answers: np.ndarray) -> Classes:
        """See `Target.recalibrated`."""
        return replace(self, line=calls.recalibration(np.array(labels, np.int64), answers))

    def columns(self, answers: np.ndarray) -> dict[str, np.ndarray]:
        """See `Target.columns`: `p_<class>`."""
        found = {f"p_{name}": answers[:, i] for i, name in enumerate(self.names)}
        return {name: column.astype(np.float32) for name, column in found.items()}

    def truth(self, bags: Sequence[Bag]) -> list[str]:
        """See `Target.truth`: class words, "" where not known."""
        return [self.names[int(bag.label)] if bag.label >= 0 else "" for bag in bags]

    def cuts(self, calls: Calls, labels: Sequence[float], answers: np.ndarray) -> dict[str, float]:
        """See `Target.cuts`: of two classes."""
        return calls.cuts(np.array(labels, np.int64), answers)

    def card(self) -> dict[str, Any]:
        """See `Target.card`."""
        return {"classes": list(self.names), "recalibration": asdict(self.line)}


@dataclass(frozen=True)
class Ordered(Classes):
    """One of K ordered classes, learnt by CORN.

    Shi, Cao and Raschka, Pattern Analysis and Applications 2023: K - 1 outputs say how probably a
    bag lies above each class if it is not below it; their products fall from cut to cut, so that no
    class has a probability below zero. Every bag weighs the same.
    """

    @property
    def outputs(self) -> int:
        """See `Target.outputs`: a cut each."""
        return len(self.names) - 1

    def fitted(self, train: Sequence[Bag]) -> Ordered:
        """See `Target.fitted`: two classes at least; nothing is learnt of the labels alone."""
        super().fitted(train)
        return self

    def loss(self) -> Loss:
        """See `Target.loss`: cross-entropy of the cuts that a bag reaches, over all cuts."""

        def corn(outputs: Tensor, labels: Tensor) -> Tensor:
            cuts = torch.arange(outputs.shape[1])
            above = (labels[:, None] > cuts).to(outputs.dtype)
            reached = (labels[:, None] >= cuts).to(outputs.dtype)
            each = nn.functional.binary_cross_entropy_with_logits(outputs, above, reduction="none")
            return (each * reached).sum(dim=1) / outputs.shape[1]

        return corn

    def answer(self, outputs: Tensor) -> np.ndarray:
        """See `Target.answer`: (K,) probabilities that sum to one."""
        above = torch.cumprod(torch.sigmoid(outputs), dim=0)
        ends = torch.cat([torch.ones(1), above, torch.zeros(1)])
        return (ends[:-1] - ends[1:]).numpy()

    def columns(self, answers: np.ndarray) -> dict[str, np.ndarray]:
        """See `Target.columns`: `p_<class>`, and `grade`, the mean place among the classes."""
        grade = (answers @ np.arange(len(self.names))).astype(np.float32)
        return {**super().columns(answers), GRADE: grade}

    def cuts(self, calls: Calls, labels: Sequence[float], answers: np.ndarray) -> dict[str, float]:
        """See `Target.cuts`: the median class is called, by no threshold."""
        del calls, labels, answers
        return {}

    def card(self) -> dict[str, Any]:
        """See `Target.card`."""
        return {"ordered": list(self.names)}


@dataclass(frozen=True)
class Number(Target):
    """A number: one output, Huber's loss of labels in standard deviations of the training bags'.

    Attributes:
        center: mean of the training bags' labels.
        spread: their standard deviation, positive.
    """

    unknown = float("nan")
    center: float = 0.0
    spread: float = 1.0

    @property
    def outputs(self) -> int:
        """See `Target.outputs`."""
        return 1

    def codes(self, words: pd.Series) -> pd.Series:
        """See `Target.codes`: the number itself."""
        return pd.to_numeric(words).astype(float)

    def strange(self, words: Sequence[str]) -> str:
        """See `Target.strange`: no number is."""
        del words
        return ""

    def fitted(self, train: Sequence[Bag]) -> Number:
        """See `Target.fitted`: with the labels' mean and standard deviation."""
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

    def answer(self, outputs: Tensor) -> np.ndarray:
        """See `Target.answer`: the number, in the label's own unit."""
        return (outputs * self.spread + self.center).numpy().astype(np.float32)

    def columns(self, answers: np.ndarray) -> dict[str, np.ndarray]:
        """See `Target.columns`: `value`."""
        return {VALUE: answers[:, 0].astype(np.float32)}

    def truth(self, bags: Sequence[Bag]) -> list[float]:
        """See `Target.truth`: the number, NaN where not known."""
        return [float(bag.label) for bag in bags]

    def cuts(self, calls: Calls, labels: Sequence[float], answers: np.ndarray) -> dict[str, float]:
        """See `Target.cuts`: a number has none."""
        del calls, labels, answers
        return {}

    def card(self) -> dict[str, Any]:
        """See `Target.card`."""
        return {"number": {"center": self.center, "spread": self.spread}}


@dataclass(frozen=True)
class Several(Target):
    """Several labels of classes, each as `Classes`, by one head with all of their outputs.

    The loss of a bag is the sum over its known labels, divided by the number of labels: a label
    that is not known teaches nothing, and what is known counts as much whatever else is. Bags'
    labels are numbers, one for every combination of classes and unknown ones; 0: none is known.

    Attributes:
        parts: (label, what is learnt of it).
    """

    unknown = 0
    parts: tuple[tuple[str, Classes], ...]

    @property
    def outputs(self) -> int:
        """See `Target.outputs`: those of all labels."""
        return sum(part.outputs for _, part in self.parts)

    def _slices(self) -> Iterator[tuple[int, str, Classes, slice]]:
        """(place, label, what is learnt of it, its outputs) of each label."""
        start = 0
        for place, (name, part) in enumerate(self.parts):
            yield place, name, part, slice(start, start + part.outputs)
            start += part.outputs

    def codes(self, words: pd.Series) -> pd.Series:
        """See `Target.codes`: digits of one more than classes, the first label's the least."""
        codes, step = pd.Series(0, words.index), 1
        for (_, part), column in zip(self.parts, apart(words, len(self.parts)), strict=True):
            places = {name: place for place, name in enumerate(part.names, 1)}
            codes += step * column.map(lambda word, p=places: p.get(word, 0))
            step *= part.outputs + 1
        return codes

    def classes(self, labels: Tensor) -> Tensor:
        """(B,) labels of bags → (B, L) class of each label, -1 where it is not known."""
        rest, found = labels.long(), []
        for _, part in self.parts:
            found.append(rest % (part.outputs + 1) - 1)
            rest = rest // (part.outputs + 1)
        return torch.stack(found, dim=1)

    def strange(self, words: Sequence[str]) -> str:
        """See `Target.strange`: of any label."""
        columns = apart(pd.Series(list(words), dtype=object), len(self.parts))
        told = [
            f"of {name!r} {strange}"
            for (name, part), column in zip(self.parts, columns, strict=True)
            if (strange := part.strange([word for word in column if word]))
        ]
        return "; ".join(told)

    def fitted(self, train: Sequence[Bag]) -> Several:
        """See `Target.fitted`: with the weights of each label's classes among its known bags."""
        parts = []
        for one in self.questions(train, {}, unknown=False):
            assert isinstance(one.target, Classes)
            try:
                parts.append((one.label, one.target.fitted(one.bags)))
            except StainsslError as error:
                raise StainsslError(f"{one.label}: {error}") from None
        return replace(self, parts=tuple(parts))

    def loss(self) -> Loss:
        """See `Target.loss`: cross-entropy of the known labels."""

        def known_alone(outputs: Tensor, labels: Tensor) -> Tensor:
            classes, total = self.classes(labels), torch.zeros(len(outputs))
            for place, _, part, columns in self._slices():
                of_label = classes[:, place]
                each = part.loss()(outputs[:, columns], of_label.clamp(min=0))
                total = total + torch.where(of_label >= 0, each, 0.0)
            return total / len(self.parts)

        return known_alone

    def answer(self, outputs: Tensor) -> np.ndarray:
        """See `Target.answer`: each label's probabilities, which sum to one."""
        return np.concatenate([part.answer(outputs[c]) for _, _, part, c in self._slices()])

    def columns(self, answers: np.ndarray) -> dict[str, np.ndarray]:
        """Each label has columns of its own: see `questions`."""
        raise NotImplementedError

    def truth(self, bags: Sequence[Bag]) -> list[str]:
        """See `columns`."""
        raise NotImplementedError

    def questions(
        self, bags: Sequence[Bag], cuts: Mapping[str, float], unknown: bool
    ) -> Iterator[Question]:
        """See `Target.questions`: every label, of the bags of which it is known."""
        classes = self.classes(torch.tensor([bag.label for bag in bags], dtype=torch.long))
        for place, name, part, columns in self._slices():
            labels = classes[:, place].tolist()
            rows = [i for i, label in enumerate(labels) if unknown or label >= 0]
            asked = [replace(bags[i], label=labels[i]) for i in rows]
            own = {
                c.removeprefix(f"{name}/"): v for c, v in cuts.items() if c.startswith(f"{name}/")
            }
            yield Question(name, part, asked, rows, columns, own)

    def cuts(self, calls: Calls, labels: Sequence[float], answers: np.ndarray) -> dict[str, float]:
        """See `Target.cuts`: of each label, by `LABEL/COLUMN`."""
        classes = self.classes(torch.tensor(labels, dtype=torch.long)).numpy()
        found: dict[str, float] = {}
        for place, name, part, columns in self._slices():
            known = classes[:, place] >= 0
            own = part.cuts(calls, classes[known, place].tolist(), answers[known][:, columns])
            found |= {f"{name}/{column}": value for column, value in own.items()}
        return found

    def card(self) -> dict[str, Any]:
        """See `Target.card`."""
        return {"labels": {name: part.card() for name, part in self.parts}}

    def recalibrated(self, calls: Calls, labels: Sequence[float], answers: np.ndarray) -> Several:
        """See `Target.recalibrated`: each label by the bags of which it is known."""
        classes = self.classes(torch.tensor(labels, dtype=torch.long)).numpy()
        parts = []
        for place, name, part, columns in self._slices():
            known = classes[:, place] >= 0
            own = part.recalibrated(
                calls, classes[known, place].tolist(), answers[known][:, columns]
            )
            parts.append((name, own))
        return replace(self, parts=tuple(parts))


def several_target(label: Labels, words: pd.Series, is_balanced: bool) -> Several:
    """What a head of several labels learns, of their known words."""
    assert isinstance(label, SeveralLabels)
    columns = zip(label.each, apart(words, len(label.each)), strict=True)
    parts = [(one.label, Classes(tuple(one.order(known)), is_balanced)) for one, known in columns]
    return Several(tuple(parts))


# How a task reads its label → what its heads learn, of the label's known words.
TARGETS: dict[type[Labels], Callable[[Labels, pd.Series, bool], Target]] = {
    Labels: lambda label, words, is_balanced: Classes(tuple(label.order(words)), is_balanced),
    OrderedLabels: lambda label, words, _: Ordered(tuple(label.order(words)), is_balanced=False),
    NumberLabels: lambda label, words, _: Number(),
    SurvivalLabels: lambda label, words, _: Hazards.of(words),
    SeveralLabels: several_target,
}


def classes_of_card(card: Mapping[str, Any]) -> Classes:
    """The classes that `Classes.card` kept."""
    line = Recalibration(**card.get("recalibration", {}))
    return Classes(tuple(card["classes"]), line=line)


# Key that a saved model's card has → the target of the card.
CARDS: dict[str, Callable[[Any], Target]] = {
    "number": lambda card: Number(**card["number"]),
    "ordered": lambda card: Ordered(tuple(card["ordered"]), is_balanced=False),
    "hazards": lambda card: Hazards(**{k: tuple(v) for k, v in card["hazards"].items()}),
    "cox": lambda card: Cox(**{k: tuple(v) for k, v in card["cox"].items()}),
    "labels": lambda card: Several(
        tuple((name, classes_of_card(own)) for name, own in card["labels"].items())
    ),
    "classes": classes_of_card,
}


def target_of(
    label: Labels, words: pd.Series, is_balanced: bool, hazard: str = "discrete"
) -> Target:
    """What the heads of a task learn.

    Args:
        label: how its label is read.
        words: its known words.
        is_balanced: whether classes weigh the same.
        hazard: `cox`, or `discrete`, of times to an event.
    """
    if hazard == "cox":
        return Cox.of(words)
    return TARGETS[type(label)](label, words, is_balanced)


def target_of_card(card: Mapping[str, Any]) -> Target:
    """The target that `Target.card` kept."""
    return next(make(card) for key, make in CARDS.items() if key in card)


def class_weights(bags: Sequence[Bag], classes: int) -> Tensor:
    """(C,) float32 weights inverse to class counts with mean 1 over bags; 0 where none."""
    counts = np.bincount([int(bag.label) for bag in bags], minlength=classes).astype(np.float32)
    present = counts > 0
    weights = np.zeros(classes, np.float32)
    weights[present] = len(bags) / (present.sum() * counts[present])
    return torch.from_numpy(weights)
