"""Monitoring of a training run: loss, speed, and quality of the embedding."""

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
from stainssl.evaluation.collapse import MAX_ALIKE, mean_cosine
from stainssl.evaluation.geometry import effective_rank
from stainssl.pretrain.data import Batch, Stream, TrainTiles
from stainssl.pretrain.losses import alignment, nearest_neighbours, uniformity
from stainssl.runtime.pace import Pace

log = logging.getLogger(__name__)

PROBE_TILES = 256  # tiles whose embeddings are monitored; metrics on them are estimates
PROBE_STEP = 2**40  # not a step of any run, so that the views of the probe never change
# On 256 tiles random weights of the tested backbones give 10 or more, a collapsed network gives 1.
RANK_FLOOR = 2.0
RANK_TILES = 32  # with fewer tiles, rank and mean cosine are not judged
# Mean squared distance of the two views of a tile, as a share of that of two tiles, above which
# training had no effect: 0.1 to 0.3 after a normal training, 0.97 where the loss never fell.
MAX_APART = 0.9
JUDGED_AFTER = 0.1  # share of the steps in which a low rank is not regarded as a collapse
REPORT_SECONDS = 10.0  # between two lines of the log
# On a GPU reading a loss waits for all queued work: losses are read every so many steps, and before
# rows and checkpoints.
GPU_READS = 20
METRICS = (
    "epoch", "step", "loss", "lr", "images_per_second", "alignment", "uniformity",
    "effective_rank", "mean_cosine", "knn_site", "knn_label",
)  # fmt: skip
Codes = npt.NDArray[np.int32]
Row = dict[str, float]


@dataclass(frozen=True)
class TileMetadata:
    """Metadata of the N training tiles as integer codes; −1 is unknown.

    Attributes:
        patient, site, label: (N,) int32.
    """

    patient: Codes
    site: Codes
    label: Codes


@dataclass(frozen=True)
class Probe:
    """A fixed batch of tiles whose embeddings are monitored.

    Attributes:
        batch: of n tiles.
        facts: metadata of the n tiles; None: no vote of nearest neighbours.
    """

    batch: Batch
    facts: TileMetadata | None

    @staticmethod
    def of(tiles: TrainTiles, facts: TileMetadata | None, seed: int) -> Probe:
        """Make a probe of up to `PROBE_TILES` random tiles: the first of an epoch never reached.

        Args:
            tiles: the N training tiles.
            facts: metadata of the N tiles.
            seed: of the order.
        """
        count = min(PROBE_TILES, len(tiles))
        batch = tiles.batch(tiles.order(seed, PROBE_STEP).take(0, count))
        if facts is None:
            return Probe(batch, None)
        known = (codes[batch.tile] for codes in (facts.patient, facts.site, facts.label))
        return Probe(batch, TileMetadata(*known))

    def figures(self, first: torch.Tensor, second: torch.Tensor) -> Row:
        """Metrics of the (n, D) embeddings of the two views of the tiles."""
        found = {
            "alignment": alignment(first, second),
            "uniformity": uniformity(first),
            "effective_rank": effective_rank(first.numpy()),
            "mean_cosine": mean_cosine([first.numpy()])[0],
        }
        return found | {f"knn_{name}": self._neighbours(first, name) for name in ("site", "label")}

    def _neighbours(self, vectors: torch.Tensor, name: str) -> float:
        if self.facts is None:
            return math.nan
        classes = torch.from_numpy(getattr(self.facts, name)).long()
        return nearest_neighbours(vectors, classes, torch.from_numpy(self.facts.patient).long())


class MonitoredModule(Protocol):
    """A network that can embed the views of a batch."""

    def vectors(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed both views in evaluation mode: two (B, D) float32 on the CPU."""
        ...


def nan_message(step: int, lr: float) -> str:
    """Error message for a loss that is not finite, with advice."""
    return (
        f"The loss is not finite at step {step} (lr {lr:g}). The last good checkpoint is kept. "
        "Try a lower `lr` (a tenth), a higher `temperature`, or a larger `batch_size`."
    )


def collapse_message(rank: float, epoch: int) -> str:
    """Error message for a collapsed embedding, with advice."""
    return (
        f"The embedding has collapsed: effective rank {rank:.2f} after epoch {epoch} (floor "
        f"{RANK_FLOOR:g}); all tiles get nearly the same embedding. Try a lower `lr`, a larger "
        "`batch_size` or a lower `temperature`, or check that the tiles show tissue."
    )


def alike_message(cosine: float, epoch: int) -> str:
    """Warning about embeddings that are nearly identical, with advice."""
    return (
        f"After epoch {epoch} all tiles have nearly the same embedding (mean cosine "
        f"{cosine:.4f}), so it carries almost no information. Train for more steps, or with a "
        "larger `batch_size` or a lower `temperature`."
    )


def apart_message(row: Row) -> str:
    """Warning about views of a tile that are as far apart as two tiles, with advice."""
    return (
        "At the end of training the two views of a tile are about as far apart as two different "
        f"tiles (mean squared distances {row['alignment']:.2f} and {_between_tiles(row):.2f}): the "
        "network has learnt almost nothing. Train for more steps or with a higher `lr`, or start "
        "from pretrained weights (`init`)."
    )


def _between_tiles(row: Row) -> float:
    """Mean squared distance of the unit vectors of two tiles."""
    return 2 - 2 * row["mean_cosine"]


@dataclass
class TrainingMonitor(Callback):
    """Callback that logs progress, adds a row of metrics per epoch, and stops a failing run.

    A run of a single epoch also gets a row per tenth, with loss, learning rate and speed only.

    Attributes:
        stream: of the batches, which defines the length of an epoch.
        steps: of the whole run.
        probe: tiles whose embeddings are monitored.
        on_row: called with all rows after each new row, in the process that writes files.
        rows: metrics so far, with the keys `METRICS`.
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
        """State that a resumed run needs: rows, and the losses since the last row."""
        return {"rows": self.rows, "loss_sum": self._loss_sum, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.rows = list(state_dict["rows"])
        self._loss_sum, self._count = state_dict["loss_sum"], state_dict["count"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Start the clock; the first row of a new run is that of the untrained network."""
        if not self.rows:
            self._add(trainer, self._row(0, 0, pl_module))
        self._since = self._said = time.monotonic()
        self._pace = Pace(self.steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, and add a row at the end of an epoch.

        Raises:
            StainsslError: a loss is not finite, or the embedding collapsed.
        """
        self._unread.append(outputs["loss"].detach())
        self._images += len(batch.everyone)
        self._pace.advance(1)
        step = trainer.global_step
        ends = step % self.stream.steps_per_epoch == 0 or step == self.steps
        ends_tenth = self._ends_tenth(step)
        if ends or ends_tenth or len(self._unread) >= (GPU_READS if batch.images.is_cuda else 1):
            self._report(step, self.read_losses(trainer))
        if ends:
            self._close_epoch(trainer, pl_module)
        elif ends_tenth:
            nothing = dict.fromkeys(METRICS, math.nan)
            self._add(trainer, nothing | {"epoch": 1, "step": step} | self._since_last(trainer))

    def _ends_tenth(self, step: int) -> bool:
        """Whether a step is the first to reach another tenth of a single-epoch run."""
        if self.steps > self.stream.steps_per_epoch:
            return False
        return 10 * step // self.steps > 10 * (step - 1) // self.steps

    def read_losses(self, trainer: lightning.Trainer) -> float:
        """Read the losses since the last call, and return the latest; NaN if there are none.

        Raises:
            StainsslError: a loss is not finite.
        """
        losses = torch.stack(self._unread).tolist() if self._unread else []
        first = trainer.global_step - len(losses) + 1
        self._unread = []
        for number, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise StainsslError(nan_message(first + number, _lr(trainer)))
            self._loss_sum, self._count = self._loss_sum + loss, self._count + 1
        return losses[-1] if losses else math.nan

    def _close_epoch(self, trainer: lightning.Trainer, module: MonitoredModule) -> None:
        step = trainer.global_step
        epoch = math.ceil(step / self.stream.steps_per_epoch)
        row = self._row(epoch, step, module) | self._since_last(trainer)
        self._add(trainer, row)
        enough = len(self.probe.batch.tile) >= RANK_TILES and step > JUDGED_AFTER * self.steps
        if enough and not row["effective_rank"] >= RANK_FLOOR:
            raise StainsslError(collapse_message(row["effective_rank"], epoch))
        if not enough or not trainer.is_global_zero:
            return
        if row["mean_cosine"] > MAX_ALIKE:
            log.warning("%s", alike_message(row["mean_cosine"], epoch))
        elif step == self.steps and row["alignment"] > MAX_APART * _between_tiles(row):
            log.warning("%s", apart_message(row))

    def _since_last(self, trainer: lightning.Trainer) -> Row:
        """Mean loss and images per second since the last row, and the learning rate."""
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

    def _row(self, epoch: int, step: int, module: MonitoredModule) -> Row:
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
    """Writes the rows of a run to TensorBoard; does nothing if the package is not installed.

    Args:
        folder: of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._written = 0

    def __call__(self, rows: list[Row]) -> None:
        """Write the rows that were added since the last call."""
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
