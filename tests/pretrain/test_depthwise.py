"""The faster gradient of depthwise convolutions equals PyTorch's."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stainssl.pretrain.depthwise import speed_up


@settings(deadline=None, max_examples=30)
@given(
    side=st.integers(1, 6),
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 2),
    data=st.data(),
)
def test_gradients_equal_those_of_pytorch(
    side: int, kernel: int, stride: int, data: st.DataObject
) -> None:
    width = data.draw(st.integers(1, 6))
    padding = data.draw(st.integers(kernel // 2, kernel))
    conv = nn.Conv2d(4, 4, kernel, stride, padding, groups=4, bias=False).double()
    fast = copy.deepcopy(conv)
    speed_up(fast)
    images = torch.randn(3, 4, side, width, dtype=torch.float64)
    results = []
    for one in (conv, fast):
        seen = images.clone().requires_grad_()
        out = one(seen)
        out.square().sum().backward()
        assert one.weight.grad is not None
        assert seen.grad is not None
        results.append((out.detach(), one.weight.grad, seen.grad))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "lcnet_050", "resnet10t"])
def test_gradients_of_a_network_are_the_same(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0).train()
    fast = copy.deepcopy(plain)
    speed_up(fast)
    assert list(plain.state_dict()) == list(fast.state_dict())
    images = torch.rand(4, 3, 64, 64)
    for model in (plain, fast):
        model(images).square().sum().backward()
    for (key, one), other in zip(plain.named_parameters(), fast.parameters(), strict=True):
        if one.grad is None:
            assert other.grad is None
            continue
        assert other.grad is not None
        size = float(one.grad.abs().max())
        torch.testing.assert_close(
            other.grad, one.grad, rtol=1e-3, atol=1e-4 * size + 1e-9, msg=key
        )


def test_gradients_of_a_copy_are_those_of_its_own_weights() -> None:
    fast = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False))
    speed_up(fast)
    copied = copy.deepcopy(fast)
    copied(torch.rand(1, 4, 2, 2)).sum().backward()
    assert copied[0].weight.grad is not None
    assert fast[0].weight.grad is None
