"""Train one head on one fold, with early stopping on its validation patients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stainssl.errors import StainsslError
from stainssl.mil import heads
from stainssl.mil.adamw import AdamW
from stainssl.mil.bags import Bag, pad, sample_tiles, statistics
from stainssl.mil.head import Loss, MilHead
from stainssl.mil.target import Target
from stainssl.mil.targets import Classes

# Bags per step. Small, so that a cohort of forty patients still has several steps per epoch.
BATCH_BAGS = 8


@dataclass(frozen=True)
class HeadSettings:
    """How a head is made and trained.

    Attributes:
        kind: a key of `heads.HEADS`.
        epochs: maximum number of passes over the training bags.
        lr: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        hidden: width of the head's tile representation.
        dropout: dropout probability, [0, 1).
        max_tiles: maximum number of tiles sampled per bag for a step and for the validation loss.
        patience: epochs without a lower validation loss after which training stops.
        columns: number of clinical features per bag, in addition to the tiles.
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
    """A trained head with the statistics that standardize its input.

    Attributes:
        head: the head in evaluation mode.
        settings: how it was made and trained.
        target: the target, fitted to the training labels.
        mean: (D,) float32 mean of each feature over the training tiles.
        std: (D,) float32 standard deviation over the training tiles, positive.
        epoch: the epoch, from 0, whose weights were kept.
        history: (training loss, validation loss) per epoch; the latter is NaN without validation
            bags.
        thresholds: thresholds chosen on validation bags, by column of `predictions.parquet`.
    """

    head: MilHead
    settings: HeadSettings
    target: Target
    mean: np.ndarray
    std: np.ndarray
    epoch: int
    history: list[tuple[float, float]] = field(default_factory=list)
    thresholds: dict[str, float] = field(default_factory=dict)


def fit(
    train: Sequence[Bag],
    val: Sequence[Bag],
    target: Target,
    settings: HeadSettings,
    seed: int,
) -> FoldModel:
    """Train a head and keep the weights of the epoch with the lowest validation loss.

    Features are standardized with the statistics of the training tiles. Without validation bags,
    all epochs run and the last is kept. The result depends only on the arguments; the caller's
    random state is not changed.

    Args:
        train: training bags whose labels the target can be fitted to (see `Target.fitted`).
        val: bags of the fold's validation patients; may be empty.
        target: the task's target, not fitted yet.
        settings: settings of the head.
        seed: seed of initialization, order of bags, sampling of tiles, and dropout.

    Returns:
        The model of the fold.

    Raises:
        StainsslError: nothing can be learnt from the labels of the training bags, or the head
            needs classes but the target has none.
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
    """Append (…, 1, F) clinical features of a bag to its (…, N, D) tiles: (…, N, D + F)."""
    return torch.cat([features, columns.expand(*features.shape[:-1], -1)], dim=-1)


@dataclass(frozen=True)
class _Loop:
    """Training loop of one fold, with what is the same in all epochs."""

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
        """Train and load the best weights into the head; returns best epoch and losses."""
        optimizer = AdamW(self.head.parameters(), self.settings.lr, self.settings.weight_decay)
        # Sampled once, so that validation losses of epochs differ by the weights alone.
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
        """One pass in a new order with newly sampled tiles; returns the mean loss of its steps."""
        self.head.train()
        order = self.rng.permutation(len(train))
        losses = []
        for part in np.array_split(order, -(-len(train) // BATCH_BAGS)):
            features, mask, labels = self._batch([train[i] for i in part], memory)
            # Divided by the number of bags: in torch's weighted mean, the class weight cancels out
            # if all bags of a batch have the same class.
            loss = self.head.losses(features, mask, labels, self.loss).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def _joint_epoch(
        self, train: Sequence[Bag], optimizer: AdamW, memory: Tensor,
        held_out: list[tuple[Tensor, Tensor, Tensor]],
    ) -> tuple[float, float]:  # fmt: skip
        """One step with a loss of all training bags; returns training and validation loss.

        Bags are passed twice in small batches with the same random numbers, so that memory does not
        grow with the cohort: first for the outputs, then to propagate the gradient of the loss at
        these outputs (Gao et al., *Scaling deep contrastive learning batch size under memory
        limited setup*, 2021). The validation loss is what the validation bags add to the loss of
        the training bags (Verweij and van Houwelingen, Statistics in Medicine 1993), since a few of
        them alone may have no event.
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
        """What validation bags add to the total loss of the training bags, per validation bag."""
        if not held_out:
            return float("nan")
        self.head.eval()
        others = torch.cat([self.head(x, m) for x, m, _ in held_out])
        both = torch.cat([labels, *(own for _, _, own in held_out)])
        whole = self.loss(torch.cat([outputs, others]), both).sum()
        return float(whole - self.loss(outputs, labels).sum()) / len(others)

    @torch.no_grad()
    def _val_loss(self, batches: list[tuple[Tensor, Tensor, Tensor]]) -> float:
        """Mean loss over validation bags; NaN if there are none."""
        if not batches:
            return float("nan")
        self.head.eval()
        losses = [self.loss(self.head(x, m), labels) for x, m, labels in batches]
        return torch.cat(losses).mean().item()

    def _batch(
        self, bags: Sequence[Bag], memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample, standardize and pad: (B, N, D) features, (B, N) mask, (B,) labels.

        If `memory` is given, the features are in it, and the next batch overwrites them.
        """
        drawn = [
            bag.rows(sample_tiles(len(bag), self.settings.max_tiles, self.rng)) for bag in bags
        ]
        features, mask = pad(drawn, memory)
        features.sub_(torch.from_numpy(self.mean)).div_(torch.from_numpy(self.std))
        if self.settings.columns:
            columns = torch.tensor([bag.columns for bag in bags])
            features = with_columns(features, columns[:, None])
        return features, mask, torch.tensor([bag.label for bag in bags])
