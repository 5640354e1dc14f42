"""Checks of networks and weights without torch agree with timm and torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from stainssl.encoders import quick_checks
from stainssl.encoders.loading import whole_patches


def test_known_architectures_are_those_of_timm():
    names = [*timm.list_models(), *timm.list_models(include_tags=True)]
    found = {name for name in names if quick_checks.is_architecture(name)}
    assert len(found) > 0.95 * len(set(names))
    wrong = ["resnot50", "resnet18.a9_in1k", "", ".", "resnet", "resnet18 ", "def", "(", "ResNet18"]
    assert not any(map(quick_checks.is_architecture, wrong))
    assert not any(map(quick_checks.has_weights, wrong))


def test_known_pretrained_weights_are_those_of_timm():
    names = [*timm.list_models(), *timm.list_models(include_tags=True)]
    trained = set(filter(timm.is_model_pretrained, names))
    found = {name for name in names if quick_checks.has_weights(name)}
    assert found <= trained
    assert len(found) > 0.95 * len(trained)
    assert quick_checks.has_weights("resnet18")
    assert quick_checks.has_weights("resnet18.a1_in1k")
    assert not quick_checks.has_weights("vit_giant_patch14_224")


@pytest.mark.parametrize("name", [
    "resnet18", "convnext_nano", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224",
    "cait_xxs24_224", "mobilenetv3_small_100", "eva02_tiny_patch14_224",
])  # fmt: skip
def test_accepted_sides_are_accepted_by_the_network(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    for side in (96, 100, 126, 224):
        if quick_checks.takes_side(name, side) and model.pretrained_cfg["fixed_input_size"]:
            whole_patches(model, side)  # raises if the side is not accepted
    if not model.pretrained_cfg["fixed_input_size"]:
        assert quick_checks.takes_side(name, 97)


@pytest.fixture(params=["w.safetensors", "w.pth"])
def weights(request, tmp_path):
    file = tmp_path / request.param
    tensors = {"a": torch.zeros(3, 4), "b": torch.ones(5)}
    (save_file if file.suffix == ".safetensors" else torch.save)(tensors, file)
    return file


def test_a_truncated_file_is_not_whole(weights):
    assert quick_checks.is_whole(weights)
    content = weights.read_bytes()
    for size in (0, 1, 7, 8, 20, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:size])
        assert not quick_checks.is_whole(weights), size
    weights.unlink()
    assert not quick_checks.is_whole(weights)


@pytest.mark.parametrize("content", [
    b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}",
    (2).to_bytes(8, "little") + b"[]", (8).to_bytes(8, "little") + b'{"a": 1}',
    (5).to_bytes(8, "little") + b"\xffabcd",
])  # fmt: skip
def test_a_file_with_an_invalid_header_is_not_whole(tmp_path, content):
    file = tmp_path / "w.safetensors"
    file.write_bytes(content)
    assert not quick_checks.is_whole(file)


def test_timm_folders_are_recognized_and_adapters_are_not(tmp_path):
    assert not quick_checks.loads(f"local-dir:{tmp_path}")
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    assert quick_checks.loads(f"local-dir:{tmp_path}")
    assert quick_checks.architecture_of(f"local-dir:{tmp_path}") == "test_vit"
    save_file({"a": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    assert not quick_checks.loads(f"local-dir:{tmp_path}")


def test_torch_is_not_imported():
    code = (
        "import sys; from stainssl.encoders.quick_checks import loads; loads('resnet18.a1_in1k');"
        "print('torch' in sys.modules or 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
