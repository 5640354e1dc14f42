"""Training one network in several processes: devices, gathering, synchronised batch norms."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from lightly.utils.dist import gather, rank, world_size
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stainssl.runtime.devices import is_slurm_step

__all__ = ["Placement", "gathered", "is_main", "placement", "rank", "synchronised", "world_size"]


@dataclass(frozen=True)
class Placement:
    """The devices of a training run.

    Attributes:
        gpu: whether it runs on GPUs.
        devices: processes per node, one per GPU.
        nodes: number of machines.
    """

    gpu: bool
    devices: int = 1
    nodes: int = 1

    @property
    def processes(self) -> int:
        """Number of processes on all nodes."""
        return self.devices * self.nodes


def placement() -> Placement:
    """All GPUs of `runtime.devices.reserve_gpus` on all nodes of the SLURM step; else the CPU.

    Under `torchrun` the number of processes is that of `torchrun`, also on CPUs.
    """
    gpus = torch.cuda.device_count()
    if local := int(os.environ.get("LOCAL_WORLD_SIZE", "0")):
        world = int(os.environ.get("WORLD_SIZE", local))
        return Placement(gpus > 0, local, world // local)
    if gpus and is_slurm_step():
        return Placement(True, gpus, int(os.environ.get("SLURM_NNODES", "1")))
    return Placement(gpus > 0, max(gpus, 1))


def is_main() -> bool:
    """Whether this is the process that writes files: the first of all."""
    named = os.environ.get("SLURM_PROCID") if is_slurm_step() else os.environ.get("RANK")
    local = os.environ.get("LOCAL_RANK", "0")
    return rank() == 0 and int(named or local) == 0


def gathered(values: Tensor) -> Tensor:
    """Gather (B, …) of all W processes to (W·B, …), in the order of ranks, with gradients.

    A loss computed from the result is that of the joint batch, the same in every process, and so is
    the step once the processes have averaged their gradients.
    """
    if world_size() == 1:
        return values
    # `gather` sums the gradients of the processes' equal losses; averaging them corrects for it.
    return torch.cat(gather(values.contiguous()))


def synchronised(module: nn.Module, gpu: bool) -> nn.Module:
    """Make batch norms compute their statistics on the joint batch of all processes.

    torch has no such batch norm for CPUs: there the activations are gathered, which is slow.

    Args:
        module: may be modified in place; use the returned one.
        gpu: whether it runs on GPUs.
    """
    if gpu:
        return convert_sync_batchnorm(module)  # timm's keeps the activation of its fused norms
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.forward = _joint_forward(norm)  # type: ignore[method-assign]
    return module


def _joint_forward(norm: nn.Module) -> Any:
    own = norm.forward

    def forward(values: Tensor) -> Tensor:
        if not norm.training or world_size() == 1:
            return own(values)
        # A slice, not a chunk: the activation that follows may modify it in place.
        return own(gathered(values))[rank() * len(values) :][: len(values)]

    return forward
