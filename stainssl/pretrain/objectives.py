"""Losses on two views, each a class with its projection head.

All are computed on the joint batch of all processes (`gathered`), so that a step is the same on any
number of devices. Heads are narrower than in the papers, which train on a million photographs of a
thousand classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, DINOLoss, VICRegLoss
from lightly.models.modules.heads import (
    BarlowTwinsProjectionHead,
    DINOProjectionHead,
    VICRegProjectionHead,
)
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from stainssl.pretrain.distributed import gathered
from stainssl.pretrain.losses import nt_xent

PROJECTION = 128  # length of the projections that NT-Xent compares, as in SimCLR
EXPANSION = 1024  # of VICReg and Barlow Twins, which decorrelate dimensions and need many
PROTOTYPES = 4096  # of DINO
TEACHER_MOMENTUM = 0.99  # the paper starts at 0.996, with a hundred times the budget


class Objective(Protocol):
    """A loss on two views, with its head."""

    def __call__(self, backbone: nn.Module, views: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss and the embeddings of a batch.

        Args:
            backbone: (2B, 3, S, S) → (2B, D).
            views: (2B, 3, S, S), all first views before all second views.

        Returns:
            The loss of the joint batch, a scalar, and this process's (2B, D) embeddings.
        """
        ...


def joint_pairs(projections: Tensor) -> tuple[Tensor, Tensor]:
    """Gather (2B, P) projections of this process to those of the joint batch.

    Returns:
        (W·B, P) float32 of the first and of the second views, for W processes.
    """
    first, second = projections.float().chunk(2)
    return gathered(first), gathered(second)


class NtXent(nn.Module):
    """SimCLR's loss (Chen et al. 2020) on a projection head with one hidden layer.

    Args:
        dim: D, dimension of the backbone's embeddings.
        temperature: of the loss.
        queue: number of projections of earlier images that serve as further negatives (He et al.
            2020), for small batches; 0: none. They come from the same network, a few steps before.
    """

    filled: Tensor
    queue: Tensor

    def __init__(self, dim: int, temperature: float, queue: int = 0) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, PROJECTION),
        )
        self._temperature = temperature
        if queue:  # as buffers, since a resumed run needs them
            self.register_buffer("queue", torch.zeros(queue, PROJECTION))
            self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def forward(self, backbone: nn.Module, views: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        vectors = backbone(views)
        first, second = joint_pairs(self.projector(vectors))
        negatives = self.queue[: int(self.filled)] if hasattr(self, "queue") else None
        loss = nt_xent(first, second, self._temperature, negatives)
        if negatives is not None:
            self._remember(second.detach())
        return loss, vectors

    def _remember(self, projections: Tensor) -> None:
        """Add (n, PROJECTION) projections to the front of the queue."""
        newest = torch.cat([F.normalize(projections, dim=1), self.queue])[: len(self.queue)]
        self.filled += min(len(projections), len(self.queue) - int(self.filled))
        self.queue = newest


class Decorrelated(nn.Module):
    """VICReg or Barlow Twins: similar views, decorrelated dimensions of an expanded projection.

    Args:
        head: (2B, D) embeddings → (2B, P) projections.
        loss: of two (B, P) projections.
    """

    def __init__(self, head: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.projector, self._loss = head, loss

    def forward(self, backbone: nn.Module, views: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        vectors = backbone(views)
        return self._loss(*joint_pairs(self.projector(vectors))), vectors


class Dino(nn.Module):
    """DINO (Caron et al. 2021) on two views: each predicts the teacher's output for the other.

    The teacher is a moving average of the student. There are no small crops, since all methods use
    two views.

    Args:
        backbone: copied as the teacher.
        dim: D, dimension of its embeddings.
    """

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.head = DINOProjectionHead(dim, dim, 256, PROTOTYPES, batch_norm=True)
        self.teacher = copy.deepcopy(backbone).requires_grad_(False)
        self.teacher_head = DINOProjectionHead(dim, dim, 256, PROTOTYPES, batch_norm=True)
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher_head.requires_grad_(False)
        self._loss = DINOLoss(PROTOTYPES)

    def forward(self, backbone: nn.Module, views: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        update_momentum(backbone, self.teacher, TEACHER_MOMENTUM)
        update_momentum(self.head, self.teacher_head, TEACHER_MOMENTUM)
        vectors = backbone(views)
        student = joint_pairs(self.head(vectors))
        with torch.no_grad():
            teacher = joint_pairs(self.teacher_head(self.teacher(views)))
        return self._loss(list(teacher), list(student)), vectors


def _nt_xent(backbone: nn.Module, dim: int, temperature: float, queue: int) -> nn.Module:
    return NtXent(dim, temperature, queue)


def _vicreg(backbone: nn.Module, dim: int, temperature: float, queue: int) -> nn.Module:
    return Decorrelated(VICRegProjectionHead(dim, EXPANSION, EXPANSION), VICRegLoss())


def _barlow_twins(backbone: nn.Module, dim: int, temperature: float, queue: int) -> nn.Module:
    return Decorrelated(BarlowTwinsProjectionHead(dim, EXPANSION, EXPANSION), BarlowTwinsLoss())


def _dino(backbone: nn.Module, dim: int, temperature: float, queue: int) -> nn.Module:
    return Dino(backbone, dim)


OBJECTIVES: dict[str, Callable[[nn.Module, int, float, int], nn.Module]] = {
    "nt-xent": _nt_xent,
    "vicreg": _vicreg,
    "barlow-twins": _barlow_twins,
    "dino": _dino,
}
