"""What is watched while a training runs: loss, speed, and whether the embedding is of use."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lightning
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import Callback

from stainssl.errors import StainsslError
from stainssl.pretrain.data import Batch, Stream, TrainTiles
from stainssl.pretrain.losses import (
    alignment,
    effective_rank,
    mean_cosine,
    nearest_neighbours,
    uniformity,
)
from stainssl.runtime.pace import Pace

log = logging.getLogger(__name__)

PROBE_TILES = 256  # tiles whose embedding is watched: their rank is an estimate, not a result
PROBE_STEP = 2**40  # no step of a run: the probe's views are the same every epoch
# Random weights of the backbones tried give 10 and more on 256 tiles; a collapsed one gives 1.
RANK_FLOOR = 2.0
RANK_TILES = 32  # fewer tiles say nothing about rank or spread
# Rank is of centred vectors and says nothing of how far apart they lie. Random weights of six
# backbones gave mean cosines of 0.26 to 0.985.
MAX_ALIKE = 0.995
JUDGED_AFTER = 0.1  # share of the steps before which a rank under the floor is no collapse
REPORT_SECONDS = 10.0
# On a GPU reading a loss waits for all that is queued: it is read this often, and before it counts.
GPU_READS = 20
METRICS = (
    "epoch", "step", "loss", "lr", "images_per_second", "alignment", "uniformity",
    "effective_rank", "mean_cosine", "knn_site", "knn_label",
)  # fmt: skip
Codes = npt.NDArray[np.int32]
Row = dict[str, float]


@dataclass(frozen=True)
class TileMetadata:
    """What is known of the N training tiles beside their pixels, as numbers; −1 is unknown.

    Attributes:
        patient, site, label: (N,) int32.
    """

    patient: Codes
    site: Codes
    label: Codes


@dataclass(frozen=True)
class Probe:
    """The tiles whose embedding is watched, and what is known of them.

    Attributes:
        batch: of n tiles.
        facts: of the n tiles; None: no neighbours are asked.
    """

    batch: Batch
    facts: TileMetadata | None

    @staticmethod
    def of(tiles: TrainTiles, facts: TileMetadata | None, seed: int) -> Probe:
        """The first tiles of an epoch that is never reached."""
        count = min(PROBE_TILES, len(tiles))
        batch = tiles.batch(tiles.order(seed, PROBE_STEP).take(0, count))
        if facts is None:
            return Probe(batch, None)
        known = (codes[batch.tile] for codes in (facts.patient, facts.site, facts.label))
        return Probe(batch, TileMetadata(*known))

    def figures(self, first: torch.Tensor, second: torch.Tensor) -> Row:
        """Metrics of the (n, D) vectors of the tiles' two views."""
        found = {
            "alignment": alignment(first, second),
            "uniformity": uniformity(first),
            "effective_rank": effective_rank(first),
            "mean_cosine": mean_cosine(first),
        }
        return found | {f"knn_{name}": self._neighbours(first, name) for name in ("site", "label")}

    def _neighbours(self, vectors: torch.Tensor, name: str) -> float:
        if self.facts is None:
            return math.nan
        classes = torch.from_numpy(getattr(self.facts, name)).long()
        return nearest_neighbours(vectors, classes, torch.from_numpy(self.facts.patient).long())


class Watched(Protocol):
    """A network that can embed the views of a batch."""

    def vectors(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, D) float32 on the CPU of both views, in evaluation mode."""
        ...


def nan_message(step: int, lr: float) -> str:
    """What to try after a loss that is not a number."""
    return (
        f"The loss is not finite at step {step} (lr {lr:g}). The last good checkpoint is kept. "
        "Try a lower `lr` (a tenth), a higher `temperature`, or a larger `batch_size`."
    )


def collapse_message(rank: float, epoch: int) -> str:
    """What to try after a collapse."""
    return (
        f"The embedding has collapsed: effective rank {rank:.2f} after epoch {epoch} (floor "
        f"{RANK_FLOOR:g}); all tiles get nearly the same embedding. Try a lower `lr`, a larger "
        "`batch_size` or a lower `temperature`, or check that the tiles show tissue."
    )


def alike_message(cosine: float, epoch: int) -> str:
    """What vectors that are nearly one vector mean, and what to try."""
    return (
        f"After epoch {epoch} all tiles have nearly the same embedding (mean cosine "
        f"{cosine:.4f}), so it carries almost no information. Train for more steps, or with a "
        "larger `batch_size` or a lower `temperature`."
    )


@dataclass
class TrainingMonitor(Callback):
    """Watches a run: not a number, collapse, a row of figures an epoch, a line now and then.

    A run of a single epoch has further rows, of the loss alone: one a tenth.

    Attributes:
        stream: says how long an epoch is.
        steps: of the whole run.
        probe: tiles whose embedding is watched.
        on_row: is called with all rows after each epoch, in the process that writes.
        rows: figures of the epochs so far, as in `METRICS`.
    """

    stream: Stream
    steps: int
    probe: Probe
    on_row: Callable[[list[Row]], None] = lambda rows: None
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loss_sum, self._count = 0.0, 0
        self._unread: list[torch.Tensor] = []
        self._since = self._said = time.monotonic()
        self._images = 0
        self._pace = Pace(self.steps)

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on must know of the epochs before."""
        return {"rows": self.rows, "loss_sum": self._loss_sum, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        self.rows = list(state_dict["rows"])
        self._loss_sum, self._count = state_dict["loss_sum"], state_dict["count"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Start the clock; a fresh run's first row shows the untrained network."""
        if not self.rows:
            self._add(trainer, self._row(0, 0, pl_module))
        self._since = self._said = time.monotonic()
        self._pace = Pace(self.steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step; at an epoch's end write its row."""
        self._unread.append(outputs["loss"].detach())
        self._images += len(batch.everyone)
        self._pace.advance(1)
        step = trainer.global_step
        ends = step % self.stream.steps_per_epoch == 0 or step == self.steps
        ends_tenth = self._ends_tenth(step)
        if ends or ends_tenth or len(self._unread) >= (GPU_READS if batch.images.is_cuda else 1):
            self._report(step, self.settle(trainer))
        if ends:
            self._close_epoch(trainer, pl_module)
        elif ends_tenth:
            nothing = dict.fromkeys(METRICS, math.nan)
            self._add(trainer, nothing | {"epoch": 1, "step": step} | self._since_last(trainer))

    def _ends_tenth(self, step: int) -> bool:
        """Whether a step is the first to reach another tenth of a run of a single epoch."""
        if self.steps > self.stream.steps_per_epoch:
            return False
        return 10 * step // self.steps > 10 * (step - 1) // self.steps

    def settle(self, trainer: lightning.Trainer) -> float:
        """Read the losses so far; the last one.

        Raises:
            StainsslError: one is not a number.
        """
        losses = torch.stack(self._unread).tolist() if self._unread else []
        first = trainer.global_step - len(losses) + 1
        self._unread = []
        for number, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise StainsslError(nan_message(first + number, _lr(trainer)))
            self._loss_sum, self._count = self._loss_sum + loss, self._count + 1
        return losses[-1] if losses else math.nan

    def _close_epoch(self, trainer: lightning.Trainer, module: Watched) -> None:
        step = trainer.global_step
        epoch = math.ceil(step / self.stream.steps_per_epoch)
        row = self._row(epoch, step, module) | self._since_last(trainer)
        self._add(trainer, row)
        enough = len(self.probe.batch.tile) >= RANK_TILES and step > JUDGED_AFTER * self.steps
        if enough and not row["effective_rank"] >= RANK_FLOOR:
            raise StainsslError(collapse_message(row["effective_rank"], epoch))
        if enough and row["mean_cosine"] > MAX_ALIKE and trainer.is_global_zero:
            log.warning("%s", alike_message(row["mean_cosine"], epoch))

    def _since_last(self, trainer: lightning.Trainer) -> Row:
        """Mean loss and pace since the last row, and the rate."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        found = {
            "loss": self._loss_sum / self._count, "lr": _lr(trainer),
            "images_per_second": self._images / seconds,
        }  # fmt: skip
        self._loss_sum, self._count, self._images = 0.0, 0, 0
        self._since = time.monotonic()
        return found

    def _add(self, trainer: lightning.Trainer, row: Row) -> None:
        self.rows.append(row)
        if not trainer.is_global_zero:
            return
        self.on_row(self.rows)
        if row["step"] and math.isfinite(row["uniformity"]):
            log.info(
                "epoch %d: loss %.3f, %.0f images/s, alignment %.2f, uniformity %.2f, effective "
                "rank %.1f, mean cosine %.3f", row["epoch"], row["loss"], row["images_per_second"],
                row["alignment"], row["uniformity"], row["effective_rank"], row["mean_cosine"],
            )  # fmt: skip

    def _row(self, epoch: int, step: int, module: Watched) -> Row:
        nothing = dict.fromkeys(METRICS, math.nan)
        vectors = module.vectors(self.probe.batch, PROBE_STEP)
        return nothing | {"epoch": epoch, "step": step} | self.probe.figures(*vectors)

    def _report(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if now - self._said < REPORT_SECONDS:
            return
        log.info(
            "step %d of %d: loss %.3f, %.0f images/s, %s left", step, self.steps, loss,
            self._pace.rate * self.stream.batch_size, self._pace.left,
        )  # fmt: skip
        self._said = now


def _lr(trainer: lightning.Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])


class TensorBoardLogger:
    """TensorBoard's curves of a run, where the package is installed.

    Args:
        folder: of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._written = 0

    def __call__(self, rows: list[Row]) -> None:
        """Write the rows that are new."""
        self._writer = self._writer or _writer(self._folder)
        if self._writer is None:
            return
        for row in rows[self._written :]:
            for name in set(row) - {"epoch", "step"}:
                if math.isfinite(row[name]):
                    self._writer.add_scalar(name, row[name], row["step"])
        self._written = len(rows)
        self._writer.flush()


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
