"""Training one head on the training patients of one fold, stopped by its validation patients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stainssl.errors import StainsslError
from stainssl.mil import heads
from stainssl.mil.adamw import AdamW
from stainssl.mil.bags import Bag, draw, pad, statistics
from stainssl.mil.head import Loss, MilHead
from stainssl.mil.target import Target
from stainssl.mil.targets import Classes

# Bags of a step. Small: a cohort of forty patients then still gives several steps an epoch.
BATCH_BAGS = 8


@dataclass(frozen=True)
class HeadSettings:
    """How a head is made and trained.

    Attributes:
        kind: a key of `heads.HEADS`.
        epochs: passes over the training bags at most.
        lr: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
        hidden: width of the head's tile representation.
        dropout: share of units dropped in training, [0, 1).
        max_tiles: tiles of a bag drawn for a step, and for the validation loss.
        patience: epochs without a lower validation loss after which training stops.
        columns: clinical features of a bag that the head takes beside its tiles.
    """

    kind: str = "abmil"
    epochs: int = 40
    lr: float = 2e-3
    weight_decay: float = 1e-2
    hidden: int = 64
    dropout: float = 0.25
    max_tiles: int = 512
    patience: int = 8
    columns: int = 0


@dataclass(frozen=True)
class FoldModel:
    """A trained head and what its input must be standardised with.

    Attributes:
        head: in evaluation mode.
        settings: how it was made.
        target: what its outputs say, with what was learnt of the training labels.
        mean: (D,) float32 over the training tiles.
        std: (D,) float32 over the training tiles, positive.
        epoch: the epoch, from 0, whose weights were kept.
        history: (training loss, validation loss) of each epoch; NaN without validation bags.
        cuts: thresholds that the validation bags chose, by column of the predictions.
    """

    head: MilHead
    settings: HeadSettings
    target: Target
    mean: np.ndarray
    std: np.ndarray
    epoch: int
    history: list[tuple[float, float]] = field(default_factory=list)
    cuts: dict[str, float] = field(default_factory=dict)


def fit(
    train: Sequence[Bag],
    val: Sequence[Bag],
    target: Target,
    settings: HeadSettings,
    seed: int,
) -> FoldModel:
    """Train a head; the weights of the epoch with the lowest validation loss are kept.

    Features are standardised with the training tiles' statistics. Without validation bags all
    epochs run and the last is kept. The result depends on the arguments alone; the caller's random
    state is left as it was.

    Args:
        train: bags of at least two classes, or two numbers.
        val: bags of other patients of the training part; may be empty.
        target: what is learnt.
        settings: the head's settings.
        seed: of initialisation, order, drawing and dropout.

    Returns:
        The fold's model.

    Raises:
        StainsslError: the training bags hold fewer than two classes or numbers, or the head is
            for classes alone.
    """
    target = target.fitted(train)
    mean, std = statistics(train)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        head = heads.create(
            settings.kind, train[0].dim, target.outputs, settings.hidden, settings.dropout,
            settings.columns,
        )  # fmt: skip
        _require_classes(head, settings, target)
        loop = _Loop(head, settings, mean, std, target.loss(), rng, target.is_joint)
        epoch, history = loop.run(train, val)
    return FoldModel(head.eval(), settings, target, mean, std, epoch, history)


def _require_classes(head: MilHead, settings: HeadSettings, target: Target) -> None:
    if head.needs_classes and type(target) is not Classes:
        raise StainsslError(
            f"a head of kind {settings.kind} needs classes, but the task's label is a number,"
            " ordered, or a time: use another head."
        )


def with_columns(features: Tensor, columns: Tensor) -> Tensor:
    """(…, N, D) tiles with (…, 1, F) clinical features of their bag behind each."""
    return torch.cat([features, columns.expand(*features.shape[:-1], -1)], dim=-1)


@dataclass(frozen=True)
class _Loop:
    """What stays the same over the epochs of one fold."""

    head: MilHead
    settings: HeadSettings
    mean: np.ndarray
    std: np.ndarray
    loss: Loss
    rng: np.random.Generator
    is_joint: bool

    def run(
        self, train: Sequence[Bag], val: Sequence[Bag]
    ) -> tuple[int, list[tuple[float, float]]]:
        """Train, leave the best weights in the head; the best epoch and the losses."""
        optimizer = AdamW(self.head.parameters(), self.settings.lr, self.settings.weight_decay)
        # Drawn once, so that epochs differ by their weights and not by the tiles they see.
        held_out = [self._batch(val[i : i + BATCH_BAGS]) for i in range(0, len(val), BATCH_BAGS)]
        longest = min(max(len(bag) for bag in train), self.settings.max_tiles)
        memory = torch.empty(BATCH_BAGS * longest * train[0].dim)
        history: list[tuple[float, float]] = []
        best, best_state = -1, self.head.state_dict()
        for epoch in range(self.settings.epochs):
            if self.is_joint:
                history.append(self._joint_epoch(train, optimizer, memory, held_out))
            else:
                trained = self._train_epoch(train, optimizer, memory)
                history.append((trained, self._val_loss(held_out)))
            if best < 0 or not val or history[epoch][1] < history[best][1]:
                best = epoch
                best_state = {k: v.clone() for k, v in self.head.state_dict().items()}
            if epoch - best >= self.settings.patience:
                break
        self.head.load_state_dict(best_state)
        return best, history

    def _train_epoch(self, train: Sequence[Bag], optimizer: AdamW, memory: Tensor) -> float:
        """One pass in a new order with newly drawn tiles; the mean loss of its steps."""
        self.head.train()
        order = self.rng.permutation(len(train))
        losses = []
        for part in np.array_split(order, -(-len(train) // BATCH_BAGS)):
            features, mask, labels = self._batch([train[i] for i in part], memory)
            # Divided by the number of bags: with torch's weighted mean, a batch of one class
            # would cancel its own weight.
            loss = self.head.losses(features, mask, labels, self.loss).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def _joint_epoch(
        self, train: Sequence[Bag], optimizer: AdamW, memory: Tensor,
        held_out: list[tuple[Tensor, Tensor, Tensor]],
    ) -> tuple[float, float]:  # fmt: skip
        """One step of a loss of all training bags; its loss, and that of the held-out bags.

        Bags are passed twice, a few at a time and with the same draws, so that memory does not grow
        with the cohort: for their outputs, then with the gradient that the loss has at these (Gao
        et al., *Scaling deep contrastive learning batch size under memory limited setup*, 2021).
        The held-out loss is what these bags add to the loss of the training bags (Verweij and van
        Houwelingen, Statistics in Medicine 1993): few of them alone may have no event.
        """
        self.head.train()
        drawn, state = self.rng.bit_generator.state, torch.get_rng_state()
        with torch.no_grad():
            outputs = torch.cat([self.head(x, m) for x, m, _ in self._batches(train, memory)])
        labels = torch.tensor([bag.label for bag in train])
        outputs.requires_grad_()
        loss = self.loss(outputs, labels).mean()
        (slope,) = torch.autograd.grad(loss, outputs)
        self.rng.bit_generator.state = drawn
        torch.set_rng_state(state)
        parts = slope.split(BATCH_BAGS)
        for part, (x, m, _) in zip(parts, self._batches(train, memory), strict=True):
            self.head(x, m).backward(part)
        optimizer.step()
        return loss.item(), self._added_loss(outputs.detach(), labels, held_out)

    def _batches(
        self, bags: Sequence[Bag], memory: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, len(bags), BATCH_BAGS):
            yield self._batch(bags[start : start + BATCH_BAGS], memory)

    @torch.no_grad()
    def _added_loss(
        self, outputs: Tensor, labels: Tensor, held_out: list[tuple[Tensor, Tensor, Tensor]]
    ) -> float:
        """What held-out bags add to the loss of the training bags, over their number."""
        if not held_out:
            return float("nan")
        self.head.eval()
        others = torch.cat([self.head(x, m) for x, m, _ in held_out])
        both = torch.cat([labels, *(own for _, _, own in held_out)])
        whole = self.loss(torch.cat([outputs, others]), both).sum()
        return float(whole - self.loss(outputs, labels).sum()) / len(others)

    @torch.no_grad()
    def _val_loss(self, batches: list[tuple[Tensor, Tensor, Tensor]]) -> float:
        """Mean loss over held-out bags; NaN without any."""
        if not batches:
            return float("nan")
        self.head.eval()
        losses = [self.loss(self.head(x, m), labels) for x, m, labels in batches]
        return torch.cat(losses).mean().item()

    def _batch(
        self, bags: Sequence[Bag], memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Drawn, standardised and padded: (B, N, D) features, (B, N) mask, (B,) labels.

        The features are in `memory` where it is given, until the next batch takes it.
        """
        drawn = [bag.rows(draw(len(bag), self.settings.max_tiles, self.rng)) for bag in bags]
        features, mask = pad(drawn, memory)
        features.sub_(torch.from_numpy(self.mean)).div_(torch.from_numpy(self.std))
        if self.settings.columns:
            columns = torch.tensor([bag.columns for bag in bags])
            features = with_columns(features, columns[:, None])
        return features, mask, torch.tensor([bag.label for bag in bags])
