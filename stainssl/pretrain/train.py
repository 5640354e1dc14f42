"""One contrastive pretraining: steps, checkpoints, and what is watched while it runs.

To lightning the whole run is one pass over a stream of batches; epochs are counted here. So there
is one way to resume, in the middle of that pass, and a step's batch, crops, jitter and target
depend on the seed and the step's number alone: no random state has to be kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from stainssl.pretrain.data import Batch, Stream, TrainTiles
from stainssl.pretrain.losses import alignment, effective_rank, nt_xent, uniformity
from stainssl.pretrain.methods import Method
from stainssl.status import StainsslError
from stainssl.stores.atomic import replacing

log = logging.getLogger(__name__)

PROJECTION = 128  # length of the projections that the loss compares, as in SimCLR
WARM_UP = 0.1  # share of the steps
PROBE_TILES = 256  # tiles whose embedding is watched: their rank is an estimate, not a result
PROBE_STEP = 2**40  # no step of a run: the probe's views are the same every epoch
# Random weights of the backbones tried give 10 and more on 256 tiles; a collapsed one gives 1.
RANK_FLOOR = 2.0
RANK_TILES = 32  # fewer tiles say nothing about rank
REPORT_SECONDS = 10.0
METRICS = (
    "epoch", "step", "loss", "lr", "images_per_second", "alignment", "uniformity",
    "effective_rank",
)  # fmt: skip
CHECKPOINT = "last.ckpt"


@dataclass(frozen=True)
class Settings:
    """How to optimise.

    Attributes:
        steps: of the whole run.
        lr: peak learning rate, reached after the warm-up, then a cosine to zero.
        weight_decay: of weights; biases and norms have none.
        temperature: of the loss.
        checkpoint_seconds: least time between two checkpoints.
        checkpoint_steps: a checkpoint every so many steps, too; None: by time alone.
    """

    steps: int
    lr: float
    weight_decay: float
    temperature: float
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None


@dataclass(frozen=True)
class Preprocessing:
    """Mean and standard deviation of RGB in [0, 1] that the network is fed with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, views: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] → normalised, channels last."""
        mean, std = (
            torch.tensor(v, device=views.device).view(1, 3, 1, 1) for v in (self.mean, self.std)
        )
        return ((views - mean) / std).contiguous(memory_format=torch.channels_last)


def projector(dim: int) -> nn.Module:
    """SimCLR's projection head: one hidden layer as wide as the embedding."""
    return nn.Sequential(
        nn.Linear(dim, dim, bias=False),
        nn.BatchNorm1d(dim),
        nn.ReLU(inplace=True),
        nn.Linear(dim, PROJECTION),
    )


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then half a cosine."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Contrastive(lightning.LightningModule):
    """A backbone and a projector that learn to tell tiles apart whatever the view.

    Args:
        backbone: (B, 3, S, S) → (B, D).
        dim: D.
        method: makes the views.
        preprocessing: of the views.
        settings: how to optimise.
    """

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        method: Method,
        preprocessing: Preprocessing,
        settings: Settings,
    ) -> None:
        super().__init__()
        self.backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.projector = projector(dim)
        self._method, self._preprocessing, self._settings = method, preprocessing, settings

    @torch.no_grad()
    def views(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """The two views of a batch as the network sees them."""
        first, second = self._method.views(batch.images, batch.tile, step)
        return self._preprocessing(first), self._preprocessing(second)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """NT-Xent of a batch; both views go through the network together."""
        views = torch.cat(self.views(batch, self.global_step))
        torch.manual_seed(self.global_step)  # dropout and stochastic depth, if the backbone has any
        first, second = self.projector(self.backbone(views)).chunk(2)
        return nt_xent(first, second, self._settings.temperature)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and a cosine, a step at a time."""
        groups = param_groups_weight_decay(self, self._settings.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=self._settings.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: learning_rate(step, self._settings.steps)
        )
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @torch.no_grad()
    def geometry(self, batch: Batch) -> dict[str, float]:
        """Alignment, uniformity and effective rank of the backbone's vectors on fixed views."""
        self.eval()
        first, second = (self.backbone(v).float().cpu() for v in self.views(batch, PROBE_STEP))
        self.train()
        return {
            "alignment": alignment(first, second),
            "uniformity": uniformity(first),
            "effective_rank": effective_rank(first),
        }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hash of all that decides a run's weights: a checkpoint of another one is not its past."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def nan_message(step: int, lr: float) -> str:
    """What to try after a loss that is not a number."""
    return (
        f"The loss is not a number at step {step} (lr {lr:g}). The last good checkpoint is kept. "
        "Try a lower `lr` (a tenth), a higher `temperature`, or a larger `batch_size`."
    )


def collapse_message(rank: float, epoch: int) -> str:
    """What to try after a collapse."""
    return (
        f"The embedding has collapsed: effective rank {rank:.2f} after epoch {epoch} (floor "
        f"{RANK_FLOOR:g}); all tiles get nearly the same vector. Try a lower `lr`, a larger "
        "`batch_size`, a lower `temperature`, or look whether the tiles show tissue at all."
    )


@dataclass
class Diary(Callback):
    """Watches a run: not a number, collapse, a row of figures an epoch, a line now and then.

    Attributes:
        stream: says how long an epoch is.
        steps: of the whole run.
        probe: tiles whose embedding is watched.
        rows: figures of the epochs so far, as in `METRICS`.
    """

    stream: Stream
    steps: int
    probe: Batch
    rows: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loss_sum, self._count = 0.0, 0
        self._since = self._said = time.monotonic()
        self._images = self._said_images = 0

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
            self.rows.append(self._row(0, 0, pl_module))
        self._since = self._said = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step; at an epoch's end write its row."""
        loss, step = float(outputs["loss"]), trainer.global_step
        if not math.isfinite(loss):
            raise StainsslError(nan_message(step, _lr(trainer)))
        self._loss_sum, self._count = self._loss_sum + loss, self._count + 1
        self._images += len(batch.images)
        self._report(step, loss)
        if step % self.stream.steps_per_epoch == 0 or step == self.steps:
            self._close_epoch(trainer, pl_module)

    def _close_epoch(self, trainer: lightning.Trainer, module: Contrastive) -> None:
        step = trainer.global_step
        epoch = math.ceil(step / self.stream.steps_per_epoch)
        row = self._row(epoch, step, module)
        row |= {"loss": self._loss_sum / self._count, "lr": _lr(trainer)}
        row["images_per_second"] = self._images / max(time.monotonic() - self._since, 1e-9)
        self.rows.append(row)
        self._loss_sum, self._count, self._images, self._said_images = 0.0, 0, 0, 0
        self._since = time.monotonic()
        log.info(
            "epoch %d: loss %.3f, %.0f images/s, alignment %.2f, uniformity %.2f, effective rank "
            "%.1f", epoch, row["loss"], row["images_per_second"], row["alignment"],
            row["uniformity"], row["effective_rank"],
        )  # fmt: skip
        enough = len(self.probe.images) >= RANK_TILES and step > WARM_UP * self.steps
        if enough and not row["effective_rank"] >= RANK_FLOOR:
            raise StainsslError(collapse_message(row["effective_rank"], epoch))

    def _row(self, epoch: int, step: int, module: Contrastive) -> dict[str, float]:
        nothing = dict.fromkeys(METRICS, math.nan)
        return nothing | {"epoch": epoch, "step": step} | module.geometry(self.probe)

    def _report(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if now - self._said < REPORT_SECONDS:
            return
        rate = (self._images - self._said_images) / (now - self._said)
        left = (self.steps - step) * self.stream.batch_size / max(rate, 1e-9)
        log.info(
            "step %d of %d: loss %.3f, %.0f images/s, %s left", step, self.steps, loss, rate,
            time.strftime("%H:%M:%S", time.gmtime(left)),
        )  # fmt: skip
        self._said, self._said_images = now, self._images


def _lr(trainer: lightning.Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])


class Checkpoints(Callback):
    """Keeps one checkpoint, replaced when the new one is whole.

    Args:
        path: of the checkpoint.
        mark: the run's fingerprint.
        settings: how often.
    """

    def __init__(self, path: Path, mark: str, settings: Settings) -> None:
        self.path, self._mark, self._settings = path, mark, settings
        self._last = time.monotonic()

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Say whose checkpoint it is."""
        checkpoint["stainssl"] = self._mark

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due, and where the job is told to go."""
        step, every = trainer.global_step, self._settings.checkpoint_steps
        due = time.monotonic() - self._last >= self._settings.checkpoint_seconds
        due = due or (every is not None and step % every == 0)
        if due or step == self._settings.steps or trainer.received_sigterm:
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Write the checkpoint.

        Raises:
            StainsslError: it cannot be written; the one before is kept.
        """
        try:
            with replacing(self.path) as made:
                trainer.save_checkpoint(made, weights_only=False)
        except OSError as error:
            raise StainsslError(
                f"{self.path}: the checkpoint of step {trainer.global_step} cannot be written "
                f"({error}). The one before is kept: make room and run again."
            ) from error
        self._last = time.monotonic()


def usable_checkpoint(path: Path, mark: str) -> int | None:
    """The step of the checkpoint in `path` where it is one of the run with this fingerprint."""
    if not path.exists():
        return None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        found, step = checkpoint.get("stainssl"), int(checkpoint["global_step"])
    except Exception as error:  # pickle, zip and torch each raise their own kinds
        log.warning("%s is not a whole checkpoint (%s): training starts anew", path, error)
        return None
    if found != mark:
        log.warning(
            "%s is of another config (%s, this one is %s): training starts anew and replaces it",
            path, found, mark,
        )  # fmt: skip
        return None
    return step


def probe_batch(tiles: TrainTiles, seed: int) -> Batch:
    """The tiles whose embedding is watched: the first ones of an epoch that is never reached."""
    return tiles.images(tiles.order(seed, PROBE_STEP)[:PROBE_TILES])


def fit(
    module: Contrastive,
    tiles: TrainTiles,
    settings: Settings,
    *,
    batch_size: int,
    seed: int,
    checkpoints: Path,
    mark: str,
) -> pd.DataFrame:
    """Train to the end of the budget, going on from the run's own checkpoint where there is one.

    Args:
        module: trained in place.
        tiles: what it sees.
        settings: how to optimise.
        batch_size: at most the number of tiles.
        seed: of the order of the tiles.
        checkpoints: folder of the checkpoint.
        mark: the run's `fingerprint`.

    Returns:
        A row per epoch, columns `METRICS`; the first row is the untrained network.

    Raises:
        StainsslError: the loss is not a number, the embedding collapsed, a checkpoint cannot be
            written, or the job was told to stop.
    """
    stream = Stream(tiles, batch_size, settings.steps, seed)
    gpu = torch.cuda.is_available()
    diary = Diary(stream, settings.steps, _on(probe_batch(tiles, seed), "cuda" if gpu else "cpu"))
    keeper = Checkpoints(checkpoints / CHECKPOINT, mark, settings)
    done = usable_checkpoint(keeper.path, mark)
    if done is not None:
        stream.start = done
        log.info("going on from step %d of %d", stream.start, settings.steps)
    trainer = _trainer(settings.steps, [diary, keeper], gpu)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of loaders and loggers that are not lightning's
            path = keeper.path if done is not None else None
            trainer.fit(module, stream, ckpt_path=path, weights_only=False)
    except SystemExit:
        raise StainsslError(
            f"Told to stop at step {trainer.global_step} of {settings.steps}: the checkpoint is "
            "written, run again to go on."
        ) from None
    return pd.DataFrame(diary.rows, columns=list(METRICS)).astype({"epoch": int, "step": int})


def _on(batch: Batch, device: str) -> Batch:
    return Batch(batch.images.to(device), batch.tile.to(device))


def _trainer(steps: int, callbacks: list[Callback], gpu: bool) -> lightning.Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return lightning.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        benchmark=gpu,
    )
