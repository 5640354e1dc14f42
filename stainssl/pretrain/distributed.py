"""Several processes that train one network: who they are, and what they tell each other."""

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
    """What a training runs on.

    Attributes:
        gpu: on GPUs rather than on the CPU.
        devices: processes on this node, one a GPU.
        nodes: machines.
    """

    gpu: bool
    devices: int = 1
    nodes: int = 1

    @property
    def processes(self) -> int:
        """Of all nodes."""
        return self.devices * self.nodes


def placement() -> Placement:
    """All GPUs that the process sees (`device.take`), on all nodes of the SLURM step; else the CPU.

    Under `torchrun` the number of its processes, which may be CPUs.
    """
    gpus = torch.cuda.device_count()
    if local := int(os.environ.get("LOCAL_WORLD_SIZE", "0")):
        world = int(os.environ.get("WORLD_SIZE", local))
        return Placement(gpus > 0, local, world // local)
    if gpus and is_slurm_step():
        return Placement(True, gpus, int(os.environ.get("SLURM_NNODES", "1")))
    return Placement(gpus > 0, max(gpus, 1))


def is_main() -> bool:
    """Whether this process is the one that writes: in a group the first."""
    named = os.environ.get("SLURM_PROCID") if is_slurm_step() else os.environ.get("RANK")
    local = os.environ.get("LOCAL_RANK", "0")
    return rank() == 0 and int(named or local) == 0


def gathered(values: Tensor) -> Tensor:
    """(W·B, …) of all W processes, in the order of their ranks; gradients flow back.

    A loss computed from it is the joint batch's, the same in every process, and so, after the
    processes have averaged their gradients, is the step.
    """
    if world_size() == 1:
        return values
    # The default gather sums the gradients of all processes' equal losses; the average undoes it.
    return torch.cat(gather(values.contiguous()))


def synchronised(module: nn.Module, gpu: bool) -> nn.Module:
    """`module` with batch norms that see the joint batch of all processes.

    torch has none for CPUs: there the activations are gathered, which is right and slow.
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
        # A slice, not a chunk: the activation that follows may change it in place.
        return own(gathered(values))[rank() * len(values) :][: len(values)]

    return forward
