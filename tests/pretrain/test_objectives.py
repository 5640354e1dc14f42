"""Losses on two views: training, gradients, teacher and queue."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stainssl.pretrain.losses import nt_xent
from stainssl.pretrain.objectives import OBJECTIVES, PROJECTION, NtXent


def _backbone():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16))


def _views(seed=0, count=12):
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.cat([images, images + 0.1])


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_a_few_steps_lower_the_loss(loss):
    backbone = _backbone()
    objective = OBJECTIVES[loss](backbone, 16, 0.2, 0)
    trained = [p for p in [*backbone.parameters(), *objective.parameters()] if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3)
    seen = []
    for _ in range(30):
        value, vectors = objective(backbone, _views())
        assert value.ndim == 0
        assert vectors.shape == (24, 16)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        seen.append(float(value.detach()))
    assert all(math.isfinite(v) for v in seen)
    assert seen[-1] < seen[0]


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_both_views_have_gradients(loss):
    backbone, views = _backbone(), _views().requires_grad_()
    OBJECTIVES[loss](backbone, 16, 0.2, 0)(backbone, views)[0].backward()
    first, second = views.grad.chunk(2)
    assert float(first.abs().sum()) > 0
    assert float(second.abs().sum()) > 0


def test_the_teacher_is_a_moving_average_without_gradient():
    backbone = _backbone()
    dino = OBJECTIVES["dino"](backbone, 16, 0.2, 0)
    start = dino.teacher[1].weight.clone()
    with torch.no_grad():
        backbone[1].weight.add_(1)
    dino(backbone, _views())[0].backward()
    torch.testing.assert_close(dino.teacher[1].weight, start + 0.01, atol=1e-5, rtol=0)
    assert dino.teacher[1].weight.grad is None


def test_the_queue_has_the_newest_projections_and_is_saved():
    backbone = _backbone()
    objective = NtXent(16, 0.2, queue=20)
    for step in range(3):
        objective(backbone, _views(step))
    assert int(objective.filled) == 20
    newest = F.normalize(objective.projector(backbone(_views(2))).chunk(2)[1], dim=1)
    assert objective.queue.shape == (20, PROJECTION)
    assert {"queue", "filled"} <= set(objective.state_dict())
    assert float((objective.queue[:12] - newest).abs().max()) < 1e-5


def test_an_empty_queue_does_not_change_the_loss_and_a_full_one_adds_negatives():
    backbone = _backbone()
    torch.manual_seed(1)
    plain = NtXent(16, 0.2)
    torch.manual_seed(1)
    queued = NtXent(16, 0.2, queue=64)
    first = [objective(backbone, _views())[0] for objective in (plain, queued)]
    assert torch.equal(*first)
    assert queued(backbone, _views(1))[0] > plain(backbone, _views(1))[0]
    same = torch.ones(5, 3)
    value = float(nt_xent(same, same, 0.2, F.normalize(torch.ones(7, 3), dim=1)))
    assert value == pytest.approx(math.log(16), abs=1e-5)
