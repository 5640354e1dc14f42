"""One pretraining: the network, its steps, and the run from its last checkpoint to its end.

To lightning the whole run is one pass over a stream of batches; epochs are counted here. So there
is one way to resume, in the middle of that pass, and a step's batch, crops, jitter and target
depend on the seed and the step's number alone: no random state has to be kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightly.utils.lars import LARS
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch import Tensor, nn

from stainssl.errors import StainsslError
from stainssl.pretrain.checkpoints import CHECKPOINT, Checkpoints, RequeueSignal, usable_checkpoint
from stainssl.pretrain.data import Batch, Stream, TrainTiles
from stainssl.pretrain.depthwise import speed_up
from stainssl.pretrain.distributed import Placement, is_main, placement, synchronised
from stainssl.pretrain.lock import training_lock
from stainssl.pretrain.methods import Method
from stainssl.pretrain.tuning import Anchor, frozen_norms, hold_norms, parameter_groups
from stainssl.pretrain.watch import METRICS, Probe, Row, TileMetadata, TrainingMonitor
from stainssl.runtime.children import end_with_parent
from stainssl.runtime.devices import is_one_of_several, is_slurm_step

log = logging.getLogger(__name__)

LARS_MOMENTUM = 0.9


@dataclass(frozen=True)
class TrainSettings:
    """How to optimise.

    Attributes:
        steps: of the whole run.
        lr: peak learning rate, reached after the warm-up, then a cosine to zero.
        weight_decay: of weights; biases and norms have none.
        optimizer: a key of `OPTIMIZERS`.
        warm_up: share of the steps.
        checkpoint_seconds: least time between two checkpoints.
        checkpoint_steps: a checkpoint every so many steps, too; None: by time alone.
        precision: `auto` (half on a GPU, 32 bits on a CPU), `32` or `bf16`.
        lr_backbone: peak rate of the backbone; None: `lr`.
        layer_decay: factor of the backbone's rate from a layer to the one before.
        freeze_steps: at first, in which the backbone stays as it is; its warm-up follows them.
        freeze_norms: whether the backbone's batch norms keep their running statistics and use them.
    """

    steps: int
    lr: float
    weight_decay: float
    optimizer: str = "adamw"
    warm_up: float = 0.1
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    precision: str = "auto"
    lr_backbone: float | None = None
    layer_decay: float = 1.0
    freeze_steps: int = 0
    freeze_norms: bool = False


@dataclass(frozen=True)
class Preprocessing:
    """Mean and standard deviation of RGB in [0, 1] that the network is fed with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, views: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] → normalized, channels last."""
        mean, std = (
            torch.tensor(v, device=views.device).view(1, 3, 1, 1) for v in (self.mean, self.std)
        )
        return ((views - mean) / std).contiguous(memory_format=torch.channels_last)


def learning_rate(step: int, steps: int, warm_up: float = 0.1) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then half a cosine."""
    warm = max(1, round(warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _adamw(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr)


def _lars(groups: Any, lr: float) -> torch.optim.Optimizer:
    return LARS(groups, lr=lr, momentum=LARS_MOMENTUM)


OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "lars": _lars,
}


class Supervision(nn.Module):
    """Cross-entropy of a linear classifier on the vectors of labelled tiles.

    Args:
        dim: length of a vector.
        label: (N,) class of every training tile, −1 where unknown.
        weight: of this loss beside the other.
    """

    def __init__(self, dim: int, label: np.ndarray, weight: float) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, int(label.max()) + 1)
        self._label, self._weight = torch.from_numpy(label).long(), weight

    def forward(self, vectors: Tensor, batch: Batch) -> Tensor:
        """The weighted loss, a scalar; 0 where no tile of the batch has a label.

        Args:
            vectors: (2B, D) of both views.
            batch: the B tiles.
        """
        label = self._label[torch.from_numpy(batch.tile)].repeat(2).to(vectors.device)
        loss = F.cross_entropy(
            self.classifier(vectors.float()), label, ignore_index=-1, reduction="sum"
        )
        return self._weight * loss / (label >= 0).sum().clamp_min(1)


class Learner(lightning.LightningModule):
    """A backbone that learns from two views of every tile.

    Args:
        backbone: (B, 3, S, S) → (B, D).
        objective: what is learnt from two views, as `objectives.Objective`.
        method: makes the views.
        preprocessing: of the views.
        settings: how to optimise.
        supervision: a loss from tile labels beside it.
        anchor: a loss that holds vectors near those that the backbone began with.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: nn.Module,
        method: Method,
        preprocessing: Preprocessing,
        settings: TrainSettings,
        supervision: Supervision | None = None,
        anchor: Anchor | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective, self.supervision, self.anchor = objective, supervision, anchor
        self._method, self._preprocessing, self._settings = method, preprocessing, settings
        self._frozen_norms = frozen_norms(backbone, all_of_them=settings.freeze_norms)
        speed_up(self.backbone)

    @property
    def backbone_rests(self) -> bool:
        """Whether the backbone is still frozen (`freeze_steps`)."""
        return self.global_step < self._settings.freeze_steps

    def train(self, mode: bool = True) -> Learner:
        """Switch to training or evaluation; norms of what is frozen stay in evaluation."""
        super().train(mode)
        teacher = getattr(self.objective, "teacher", None)  # DINO's, of the same names
        for network in (self.backbone, teacher):
            if network is not None:
                hold_norms(network, None if self.backbone_rests else self._frozen_norms)
        return self

    @torch.no_grad()
    def views(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """The two views of a batch as the network sees them, always made in full precision."""
        # Half precision is the network's: in it the stain's and the colors' 3×3 maps would round.
        with torch.autocast(batch.images.device.type, enabled=False):
            first, second = self._method.views(batch, step)
            return self._preprocessing(first), self._preprocessing(second)

    def on_train_start(self) -> None:
        """Switch to training by the step that the run goes on from; lightning switches nothing."""
        self.train()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch; both views go through the network together."""
        if self.global_step == self._settings.freeze_steps:
            self.train()
        views = torch.cat(self.views(batch, self.global_step))
        torch.manual_seed(self.global_step)  # dropout and stochastic depth, if the backbone has any
        loss, vectors = self.objective(self.backbone, views)
        if self.anchor:
            loss = loss + self.anchor(vectors, views)
        return loss + self.supervision(vectors, batch) if self.supervision else loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the backbone's gradients while it is frozen."""
        if self.backbone_rests:
            for value in self.backbone.parameters():
                value.grad = None  # no momentum either; parameters without one are passed over

    def configure_optimizers(self) -> Any:
        """The optimiser with warm-up and a cosine, a step at a time."""
        wanted, rest = self._settings, self._settings.freeze_steps
        heads, backbone = parameter_groups(
            self.backbone,
            [part for part in (self.objective, self.supervision) if part is not None],
            weight_decay=wanted.weight_decay,
            lr_backbone=wanted.lr_backbone or wanted.lr,
            layer_decay=wanted.layer_decay,
        )
        optimiser = OPTIMIZERS[wanted.optimizer]([*heads, *backbone], wanted.lr)

        def of_heads(step: int) -> float:
            return learning_rate(step, wanted.steps, wanted.warm_up)

        def of_backbone(step: int) -> float:
            return learning_rate(max(0, step - rest), wanted.steps - rest, wanted.warm_up)

        rates: list[Any] = [of_heads] * len(heads) + [of_backbone] * len(backbone)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rates)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @torch.no_grad()
    def vectors(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """(B, D) float32 on the CPU of both views of a batch, in evaluation mode."""
        moved = batch._replace(images=batch.images.to(self.device))
        self.eval()
        first, second = (self.backbone(v).float().cpu() for v in self.views(moved, step))
        self.train()
        return first, second


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hash of all that decides a run's weights: only a checkpoint with the same one is resumed."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fit(
    module: Learner,
    tiles: TrainTiles,
    settings: TrainSettings,
    *,
    batch_size: int,
    seed: int,
    checkpoints: Path,
    mark: str,
    facts: TileMetadata | None = None,
    on_row: Callable[[list[Row]], None] = lambda rows: None,
) -> pd.DataFrame:
    """Train to the end of the budget, going on from the run's own checkpoint where there is one.

    In a group of processes (GPUs, nodes, `torchrun`) each calls this alike.

    Args:
        module: trained in place.
        tiles: what it sees.
        settings: how to optimise.
        batch_size: of all processes together; at most the number of tiles.
        seed: of the order of the tiles.
        checkpoints: folder of the checkpoint.
        mark: the run's `fingerprint`.
        facts: of the tiles, for the neighbours' vote.
        on_row: is called with all rows after each epoch, in the process that writes.

    Returns:
        A row per epoch, columns `METRICS`; the first row is the untrained network.

    Raises:
        StainsslError: the loss is not a number, the embedding collapsed, a checkpoint cannot be
            written, the job was told to stop, or another one is training into the same folder and
            cannot be waited for.
    """
    if not is_main() and isinstance(_environment(), LightningEnvironment):
        end_with_parent()  # it was started by the process that writes, and waits for its gradients
    where, signal = placement(), RequeueSignal()
    stream = Stream(tiles, batch_size, settings.steps, seed)
    monitor = TrainingMonitor(stream, settings.steps, Probe.of(tiles, facts, seed), on_row)
    checkpointing = Checkpoints(
        checkpoints / CHECKPOINT, mark, monitor, signal, steps=settings.steps,
        seconds=settings.checkpoint_seconds, every=settings.checkpoint_steps,
    )  # fmt: skip
    if where.processes > 1:
        synchronised(module, where.gpu)
    trainer = _trainer(settings, [monitor, checkpointing], where)
    with _alone(checkpoints), signal.listening():
        done = usable_checkpoint(checkpointing.path, mark)
        if done is not None:
            stream.start = done
            log.info("resuming from step %d of %d", stream.start, settings.steps)
        path = checkpointing.path if done is not None else None
        _run(trainer, module, stream, path, settings.steps)
    return pd.DataFrame(monitor.rows, columns=list(METRICS)).astype({"epoch": int, "step": int})


def _alone(checkpoints: Path) -> AbstractContextManager[None]:
    """The lock on the checkpoints, held by the process that writes them.

    One of several processes that were started together refuses rather than waits: the others would
    give up on it.
    """
    return training_lock(checkpoints, wait=not is_one_of_several()) if is_main() else nullcontext()


def _run(
    trainer: lightning.Trainer, module: Learner, stream: Stream, path: Path | None, steps: int
) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of loaders and loggers that are not lightning's
            trainer.fit(module, stream, ckpt_path=path, weights_only=True)
    except SystemExit:
        raise StainsslError(
            f"Stopped at step {trainer.global_step} of {steps}: the checkpoint is "
            "written, run again to continue."
        ) from None


def _trainer(
    settings: TrainSettings, callbacks: list[Callback], where: Placement
) -> lightning.Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return lightning.Trainer(
        accelerator="gpu" if where.gpu else "cpu",
        devices=where.devices,
        num_nodes=where.nodes,
        strategy="ddp" if where.processes > 1 else "auto",
        plugins=[_environment()],
        precision=_precision(settings.precision, where.gpu),  # type: ignore[arg-type]
        max_steps=settings.steps,
        max_epochs=-1,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        benchmark=where.gpu,
    )


def _environment() -> ClusterEnvironment:
    """Who starts the processes: srun, torchrun, or the first process itself.

    Requeueing is ours (`checkpoints`): lightning's would write a second checkpoint of its own.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if is_slurm_step() else LightningEnvironment()


def _precision(wanted: str, gpu: bool) -> str:
    """Half precision where the device has it; bf16 rather than fp16, which can overflow.

    On a CPU only where it is asked for: it halves the time of dense convolutions on one that has
    the instructions, doubles that of depthwise ones, and is slow on all others.
    """
    if wanted != "auto":
        return {"32": "32-true", "bf16": "bf16-mixed"}[wanted]
    if not gpu:
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
