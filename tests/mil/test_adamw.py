"""AdamW against its equations, and against torch's own."""

from __future__ import annotations

import numpy as np
import torch

from stainssl.mil.adamw import AdamW

LR, DECAY = 1e-2, 0.1
TORCH = [0.9451098917183258, -1.9566104273332456, 0.44760539404849925]


def _by_equation(theta: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    m = v = np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        theta = (1 - LR * DECAY) * theta
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - LR * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return theta


def test_steps_follow_the_equations(rng):
    start, gradients = rng.normal(size=(4, 3)), list(rng.normal(size=(20, 4, 3)))
    parameter = torch.tensor(start, requires_grad=True)
    optimizer = AdamW([parameter], lr=LR, weight_decay=DECAY)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        assert parameter.grad is None
    np.testing.assert_allclose(parameter.detach(), _by_equation(start, gradients), rtol=1e-9)


def test_steps_equal_those_of_torch():
    """Reference: torch 2.12.1, `torch.optim.AdamW([p], lr=1e-2, weight_decay=0.1)`, run once.

    Importing it here would cost more than all other tests of this folder.
    """
    parameter = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    optimizer = AdamW([parameter], lr=LR, weight_decay=DECAY)
    for step in range(5):
        parameter.grad = torch.tensor([0.3, -0.2 * step, 1e-3], dtype=torch.float64)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach(), TORCH, rtol=1e-9)


def test_a_parameter_without_gradient_is_unchanged():
    parameter = torch.ones(2, requires_grad=True)
    AdamW([parameter], lr=LR, weight_decay=DECAY).step()
    assert parameter.tolist() == [1.0, 1.0]
