"""A pretraining run: the network, its training step, and the loop with resuming.

For lightning the whole run is one pass over a stream of batches; epochs are counted here. There is
thus one way to resume, in the middle of the pass. Batch, crops, jitter and target of a step depend
only on the seed and the number of the step, so that no random state is stored.
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
from stainssl.pretrain.distributed import Placement, is_main, placement, rank, synchronised
from stainssl.pretrain.lock import training_lock
from stainssl.pretrain.methods import Method
from stainssl.pretrain.monitoring import METRICS, Probe, Row, TileMetadata, TrainingMonitor
from stainssl.pretrain.tuning import DistillationLoss, frozen_norms, hold_norms, parameter_groups
from stainssl.runtime.children import end_with_parent
from stainssl.runtime.devices import is_one_of_several, is_slurm_step

log = logging.getLogger(__name__)

LARS_MOMENTUM = 0.9


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the optimisation.

    Attributes:
        steps: of the whole run.
        lr: peak learning rate, reached after the warm-up; a cosine to zero follows.
        weight_decay: of weights; biases and norms have none.
        optimizer: a key of `OPTIMIZERS`.
        warm_up: share of the steps.
        checkpoint_seconds: minimum time between two checkpoints.
        checkpoint_steps: steps after which a checkpoint is written in any case; None: by time only.
        precision: `auto` (half on a GPU, 32 bits on a CPU), `32` or `bf16`.
        lr_backbone: peak learning rate of the backbone; None: `lr`.
        layer_decay: factor of the backbone's learning rate from one layer to the layer before it.
        freeze_steps: initial steps in which the backbone does not change; its warm-up follows.
        freeze_norms: whether the backbone's batch norms use and keep their running statistics.
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
    """Normalization of the network's input by mean and standard deviation of RGB in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, views: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] → normalized, channels last."""
        mean, std = (
            torch.tensor(v, device=views.device).view(1, 3, 1, 1) for v in (self.mean, self.std)
        )
        return ((views - mean) / std).contiguous(memory_format=torch.channels_last)


def learning_rate(step: int, steps: int, warm_up: float = 0.1) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine to zero.

    Args:
        step: from 0.
        steps: of the whole run.
        warm_up: share of the steps.
    """
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
    """Cross-entropy of a linear classifier on the embeddings of labelled tiles.

    Args:
        dim: D, dimension of an embedding.
        label: (N,) class of every training tile, −1 if unknown.
        weight: of this loss in the sum of losses.
    """

    def __init__(self, dim: int, label: np.ndarray, weight: float) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, int(label.max()) + 1)
        self._label, self._weight = torch.from_numpy(label).long(), weight

    def forward(self, vectors: Tensor, batch: Batch) -> Tensor:
        """Weighted loss, a scalar; 0 if no tile of the batch has a label.

        Args:
            vectors: (2B, D) embeddings of both views.
            batch: the B tiles.
        """
        label = self._label[torch.from_numpy(batch.tile)].repeat(2).to(vectors.device)
        loss = F.cross_entropy(
            self.classifier(vectors.float()), label, ignore_index=-1, reduction="sum"
        )
        return self._weight * loss / (label >= 0).sum().clamp_min(1)


class Learner(lightning.LightningModule):
    """A backbone trained on two views of every tile.

    Args:
        backbone: (B, 3, S, S) → (B, D).
        objective: loss on two views, see `objectives.Objective`.
        method: makes the views.
        preprocessing: of the views.
        settings: of the optimisation.
        supervision: an additional loss on tile labels.
        distillation: an additional loss that keeps embeddings close to the initial backbone's.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: nn.Module,
        method: Method,
        preprocessing: Preprocessing,
        settings: TrainSettings,
        supervision: Supervision | None = None,
        distillation: DistillationLoss | None = None,
    ) -> None:
        super().__init__()
        self.seed = 0  # `fit` sets the run's
        self.backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective, self.supervision = objective, supervision
        self.anchor = distillation  # by the name that checkpoints have
        self._method, self._preprocessing, self._settings = method, preprocessing, settings
        self._frozen_norms = frozen_norms(backbone, all_of_them=settings.freeze_norms)
        speed_up(self.backbone)

    @property
    def is_backbone_frozen(self) -> bool:
        """Whether the backbone is still frozen (`freeze_steps`)."""
        return self.global_step < self._settings.freeze_steps

    def train(self, mode: bool = True) -> Learner:
        """Switch to training or evaluation mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        teacher = getattr(self.objective, "teacher", None)  # DINO's, with the same names of layers
        for network in (self.backbone, teacher):
            if network is not None:
                hold_norms(network, None if self.is_backbone_frozen else self._frozen_norms)
        return self

    @torch.no_grad()
    def views(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Two preprocessed views of a batch (B, 3, S, S), always made in full precision."""
        # Under autocast the 3×3 maps of stain and color would be rounded to half precision.
        with torch.autocast(batch.images.device.type, enabled=False):
            first, second = self._method.views(batch, step)
            return self._preprocessing(first), self._preprocessing(second)

    def on_train_start(self) -> None:
        """Switch to training mode, with batch norms as of the current step: lightning does not."""
        self.train()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch; both views go through the network together."""
        if self.global_step == self._settings.freeze_steps:
            self.train()
        views = torch.cat(self.views(batch, self.global_step))
        # For dropout and stochastic depth, if the backbone has any.
        words = np.random.SeedSequence([self.seed, self.global_step, rank()]).generate_state(1)
        torch.manual_seed(int(words[0]))
        loss, vectors = self.objective(self.backbone, views)
        if self.anchor:
            loss = loss + self.anchor(vectors, views)
        return loss + self.supervision(vectors, batch) if self.supervision else loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the backbone's gradients while it is frozen."""
        if self.is_backbone_frozen:
            for value in self.backbone.parameters():
                value.grad = None  # skipped by the optimizer: no weight decay and no momentum

    def configure_optimizers(self) -> Any:
        """Optimizer, and a schedule per step: linear warm-up, then a cosine to zero."""
        wanted, frozen = self._settings, self._settings.freeze_steps
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
            return learning_rate(max(0, step - frozen), wanted.steps - frozen, wanted.warm_up)

        rates: list[Any] = [of_heads] * len(heads) + [of_backbone] * len(backbone)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rates)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @torch.no_grad()
    def vectors(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Embed both views of a batch in evaluation mode: two (B, D) float32 on the CPU."""
        moved = batch._replace(images=batch.images.to(self.device))
        self.eval()
        first, second = (self.backbone(v).float().cpu() for v in self.views(moved, step))
        self.train()
        return first, second


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hash of all settings that affect a run's weights; only its own checkpoint is resumed."""
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
    """Train to the last step, resuming from the run's own checkpoint if there is one.

    With several processes (GPUs, nodes, `torchrun`) each makes the same call.

    Args:
        module: trained in place.
        tiles: the training tiles.
        settings: of the optimisation.
        batch_size: tiles per step of all processes together; at most the number of tiles.
        seed: of the order of the tiles, and of dropout.
        checkpoints: folder of the checkpoint.
        mark: `fingerprint` of the run.
        facts: metadata of the tiles, for the vote of nearest neighbours; None: no vote.
        on_row: called with all rows after each new row, in the process that writes files.

    Returns:
        One row per epoch with the columns `METRICS`; the first row is the untrained network. A run
        of a single epoch has further rows, one per tenth.

    Raises:
        StainsslError: a loss is not finite, the embedding collapsed, a checkpoint cannot be
            written, the job was told to stop, or another job is training into the same folder and
            this process cannot wait for it.
    """
    if not is_main() and isinstance(_environment(), LightningEnvironment):
        end_with_parent()  # started by the first process, without which it would wait forever
    where, signal = placement(), RequeueSignal()
    module.seed = seed
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
    """The lock on the folder of checkpoints, taken by the process that writes them.

    One of several processes that were started together raises instead of waiting, since the others
    would time out.
    """
    return training_lock(checkpoints, wait=not is_one_of_several()) if is_main() else nullcontext()


def _run(
    trainer: lightning.Trainer, module: Learner, stream: Stream, path: Path | None, steps: int
) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about loaders and loggers that are not lightning's
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
    """What starts the processes: srun, torchrun, or the first process itself.

    lightning's requeueing is off, since it would write a second checkpoint; see `checkpoints`.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if is_slurm_step() else LightningEnvironment()


def _precision(wanted: str, gpu: bool) -> str:
    """lightning's precision: half on a GPU, bf16 if supported, since fp16 can overflow.

    On a CPU bf16 must be requested: it halves the time of dense convolutions on a CPU with the
    instructions for it, doubles that of depthwise ones, and is slow on all other CPUs.
    """
    if wanted != "auto":
        return {"32": "32-true", "bf16": "bf16-mixed"}[wanted]
    if not gpu:
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
