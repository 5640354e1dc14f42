"""Last blocks of a network, and the layers that can take an adapter."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from stainssl.encoders.blocks import adaptable, last_blocks
from stainssl.errors import StainsslError


def _meta(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0)


@pytest.mark.parametrize(
    ("name", "count", "prefixes"),
    [
        ("test_vit", 2, ("blocks.4.", "blocks.5.", "norm.")),
        ("vit_small_patch16_224", 1, ("blocks.11.", "norm.")),
        ("test_resnet", 1, ("layer4.",)),
        ("resnet50", 4, ("layer1.", "layer2.", "layer3.", "layer4.")),
        ("tf_efficientnet_lite0", 2, ("blocks.5.", "blocks.6.", "conv_head.", "bn2.")),
        ("convnext_tiny", 1, ("stages.3.", "head.norm.")),
        ("vit_base_patch14_reg4_dinov2", 1, ("blocks.11.", "norm.")),  # without the register tokens
    ],
)
def test_parameters_of_the_last_blocks_and_later_layers(name, count, prefixes):
    model = _meta(name)
    found = last_blocks(model, count)
    assert found == {n for n, _ in model.named_parameters() if n.startswith(prefixes)}


def test_more_blocks_than_the_network_has_is_an_error():
    assert last_blocks(_meta("test_vit"), 6)
    with pytest.raises(StainsslError, match=r"last-7: a VisionTransformer has 6 .*last-6 at most"):
        last_blocks(_meta("test_vit"), 7)
    with pytest.raises(StainsslError, match=r"does not define the blocks of a Linear: use"):
        last_blocks(nn.Linear(2, 2), 1)


def test_all_linear_layers_of_a_vit_take_an_adapter():
    found = adaptable(_meta("vit_small_patch16_224"), 8, 224)
    kinds = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert found == [f"blocks.{i}.{kind}" for i in range(12) for kind in kinds]


def test_pointwise_convolutions_take_an_adapter_if_it_is_smaller():
    model = _meta("tf_efficientnet_lite0")
    found = adaptable(model, 8, 64)
    assert "conv_head" in found
    assert "blocks.6.0.conv_pw" in found
    assert not any("conv_dw" in name or name == "conv_stem" for name in found)
    assert "blocks.0.0.conv_pw" in found  # 32 → 16: an adapter of 384 weights for 512
    assert "blocks.0.0.conv_pw" not in adaptable(model, 16, 64)


class _UncalledLayer(nn.Module):
    """A network that calls one layer and only reads the weights of another."""

    def __init__(self):
        super().__init__()
        self.called, self.read = nn.Linear(48, 48), nn.Linear(48, 48)

    def forward(self, images):
        return nn.functional.linear(
            self.called(images.mean((2, 3)).repeat(1, 16)), self.read.weight
        )


def test_a_layer_that_is_not_called_takes_no_adapter():
    model = _UncalledLayer().train()
    assert adaptable(model, 4, 8) == ["called"]
    assert model.training
    with pytest.raises(StainsslError, match=r"no layer larger than an adapter of rank 24"):
        adaptable(model, 24, 8)
