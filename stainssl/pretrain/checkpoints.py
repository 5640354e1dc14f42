"""Atomic checkpoints of a training run, and requeueing of a preempted SLURM job."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from stainssl.errors import StainsslError
from stainssl.pretrain.distributed import is_main
from stainssl.pretrain.monitoring import TrainingMonitor
from stainssl.stores.atomic import replacing

log = logging.getLogger(__name__)

CHECKPOINT = "last.ckpt"
REQUEUE_SIGNAL = signal.SIGUSR1  # what `sbatch --signal=USR1@120` sends


class RequeueSignal:
    """Records whether the job was asked to stop and be requeued (SIGUSR1)."""

    def __init__(self) -> None:
        self.to_requeue = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signal while the block runs; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(REQUEUE_SIGNAL, self._note)
        try:
            yield
        finally:
            signal.signal(REQUEUE_SIGNAL, before)

    def _note(self, number: int, frame: Any) -> None:
        self.to_requeue = True


def requeue() -> str:
    """Put this SLURM job back into the queue, and return the outcome as part of a sentence."""
    job = os.environ.get("SLURM_JOB_ID")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if not job:
        return "run again to continue"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or error
        return (
            f"SLURM does not requeue job {job} ({str(detail).strip()}): submit it again to continue"
        )
    return f"job {job} is requeued by SLURM and will continue"


class Checkpoints(Callback):
    """Callback that keeps one checkpoint, which is replaced once the next one is complete.

    Args:
        path: of the checkpoint.
        mark: fingerprint of the run.
        monitor: checks before a checkpoint is written that all losses are finite.
        stop_signal: whether the job is preempted.
        steps: of the whole run; a checkpoint is written after the last.
        seconds: minimum time between two checkpoints.
        every: steps after which a checkpoint is written in any case; None: by time only.
    """

    def __init__(
        self,
        path: Path,
        mark: str,
        monitor: TrainingMonitor,
        stop_signal: RequeueSignal,
        *,
        steps: int,
        seconds: float,
        every: int | None,
    ) -> None:
        self.path, self._mark, self._monitor, self._signal = path, mark, monitor, stop_signal
        self._steps, self._seconds, self._every = steps, seconds, every
        self._last = time.monotonic()

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Add the fingerprint of the run to the checkpoint."""
        checkpoint["stainssl"] = self._mark

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if one is due or the job is preempted.

        Raises:
            StainsslError: the job is preempted; the checkpoint is written, and under SLURM the job
                is requeued.
        """
        step = trainer.global_step
        due = time.monotonic() - self._last >= self._seconds
        due = due or (self._every is not None and step % self._every == 0)
        agreed = trainer.strategy.reduce_boolean_decision  # clocks and signals differ by process
        leaving = agreed(self._signal.to_requeue, all=False)
        if leaving or agreed(due or step == self._steps or trainer.received_sigterm, all=False):
            self.save(trainer)
        if leaving:
            outcome = requeue() if trainer.is_global_zero else "run again to continue"
            raise StainsslError(
                f"Preempted at step {step} of {self._steps}: the checkpoint is written, {outcome}."
            )

    def save(self, trainer: lightning.Trainer) -> None:
        """Write the checkpoint.

        Raises:
            StainsslError: it cannot be written, or a loss is not finite; the previous one is kept.
        """
        self._monitor.read_losses(trainer)
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.path)  # collective call; only the first process writes
            return
        try:
            with replacing(self.path) as made:
                trainer.save_checkpoint(made, weights_only=False)
        except OSError as error:
            raise StainsslError(
                f"{self.path}: the checkpoint of step {trainer.global_step} cannot be written "
                f"({error}). The previous one is kept: free disk space and run again."
            ) from error
        self._last = time.monotonic()


def usable_checkpoint(path: Path, mark: str) -> int | None:
    """Step of the checkpoint at `path` if it is from the run with this fingerprint; else None.

    A checkpoint of another run is renamed to `of-….ckpt`.
    """
    if not path.exists():
        return None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        found, step = checkpoint.get("stainssl"), int(checkpoint["global_step"])
    except Exception as error:  # pickle, zip and torch each raise their own exceptions
        log.warning("%s is an incomplete checkpoint (%s): training starts over", path, error)
        return None
    if found != mark:
        kept = path.with_name(f"of-{found}.ckpt")
        log.warning(
            "%s is from another config (%s, this one is %s): training starts over, the old one is "
            "kept as %s", path, found, mark, kept.name,
        )  # fmt: skip
        if is_main():
            os.replace(path, kept)
        return None
    return step
