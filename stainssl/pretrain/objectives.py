"""What is learnt from two views: one class a loss, with the head that the loss looks at.

All see the joint batch of all processes (`gathered`), so that a step is the same on one device and
on many. Heads are narrower than in the papers, which train on a million photographs of a thousand
classes.
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
EXPANSION = 1024  # of VICReg and Barlow Twins, which decorrelate dimensions and so need many
PROTOTYPES = 4096  # of DINO
TEACHER_MOMENTUM = 0.99  # DINO starts at 0.996; budgets here are a hundredth of its


class Objective(Protocol):
    """One way to learn from two views."""

    def __call__(self, backbone: nn.Module, views: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and vectors of a batch.

        Args:
            backbone: (2B, 3, S, S) → (2B, D).
            views: (2B, 3, S, S), all first views before all second ones.

        Returns:
            The loss of the joint batch, a scalar; the backbone's vectors (2B, D) of this process.
        """
        ...


def joint_pairs(projections: Tensor) -> tuple[Tensor, Tensor]:
    """First and second views of the joint batch, float32, of this process's (2B, P)."""
    first, second = projections.float().chunk(2)
    return gathered(first), gathered(second)


class NtXent(nn.Module):
    """SimCLR's loss (Chen et al. 2020) on a projector of one hidden layer.

    Args:
        dim: D, length of the backbone's vectors.
        temperature: of the loss.
        queue: projections of earlier images that serve as negatives too (He et al. 2020), for
            small batches; 0: none. They are those of the same network, a few steps older.
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
        if queue:  # buffers: a run that goes on needs them
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
        """Put the newest in front."""
        newest = torch.cat([F.normalize(projections, dim=1), self.queue])[: len(self.queue)]
        self.filled += min(len(projections), len(self.queue) - int(self.filled))
        self.queue = newest


class Decorrelated(nn.Module):
    """VICReg or Barlow Twins: views agree, dimensions of an expanded projection differ.

    Args:
        head: vectors → projections.
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
    """DINO (Caron et al. 2021) on two views: each view predicts the teacher's other one.

    The teacher is a running average of the student. No small crops: all methods see two views.

    Args:
        backbone: whose copy the teacher is.
        dim: length of its vectors.
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
