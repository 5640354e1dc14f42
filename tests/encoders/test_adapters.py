"""Adapters are small, give the embeddings of the trained network, and need their base weights."""

from __future__ import annotations

import json
import shutil

import pytest
import timm
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from stainssl.encoders import adapters
from stainssl.encoders.adapters import Base
from stainssl.encoders.blocks import adaptable
from stainssl.encoders.initial import initial_backbone
from stainssl.encoders.loading import load, load_network, with_classes
from stainssl.encoders.saving import save_adapter, save_local_dir
from stainssl.errors import StainsslError
from stainssl.pretrain.lora import adapt
from stainssl.pretrain.tuning import parameter_groups
from tests.encoders.test_recipes import _randomize, _tiny

MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.3, 0.25)
KEYS = {"mean": MEAN, "std": STD, "card": {"method": "simclr"}}


def _base(folder, name="test_vit", size=64, seed=0, **args):
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=0, **args)
    save_local_dir(model, folder, backbone=name, input_size=size, model_args=args, **KEYS)
    return f"local-dir:{folder}"


def _adapter(folder, source, size, rank=2, trained=True):
    """Save an adapter as training does; returns the network with the adapter."""
    start = initial_backbone(source, size, adapted=True)
    network = adapt(start.model, adaptable(start.model, rank, size), rank, 6.0, seed=1)
    if trained:
        for name, value in start.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.1)
    save_adapter(
        network, folder, Base(source, start.sha256), backbone=start.name, input_size=size, **KEYS,
    )  # fmt: skip
    return start.model.eval()


def _images(size, count=3):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(7))


KINDS = {
    "vit": ("test_vit", 64, {"img_size": 64}, 64),
    "resampled vit": ("test_vit", 64, {"img_size": 64}, 96),
    "cnn": ("test_efficientnet", 64, {}, 64),
    "cnn at another size": ("test_resnet", 64, {}, 48),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_adapter_gives_the_embeddings_of_the_trained_network(tmp_path, kind):
    name, size, args, own = KINDS[kind]
    source = _base(tmp_path / "base", name, size, **args)
    network = _adapter(tmp_path / "adapter", source, own)
    found = load(tmp_path / "adapter")
    with torch.inference_mode():
        expected = network(_images(own))
        torch.testing.assert_close(found.model(_images(own)), expected, atol=1e-5, rtol=1e-4)
        without = initial_backbone(source, own).model.eval()(_images(own))
    assert (expected - without).norm() > 0.01 * without.norm()
    assert found.input_size == own
    assert found.dim == expected.shape[1]
    torch.testing.assert_close(found.mean.flatten(), torch.tensor(MEAN))


def test_peft_loads_an_adapter(tmp_path):
    source = _base(tmp_path / "base", img_size=64)
    network = _adapter(tmp_path / "adapter", source, 64)
    found = PeftModel.from_pretrained(load_network(source), str(tmp_path / "adapter")).eval()
    with torch.inference_mode():
        torch.testing.assert_close(found(_images(64)), network(_images(64)))


def test_an_untrained_adapter_does_not_change_the_embeddings(tmp_path):
    source = _base(tmp_path / "base", img_size=64)
    _adapter(tmp_path / "adapter", source, 64, trained=False)
    with torch.inference_mode():
        found = load(tmp_path / "adapter").model(_images(64))
        assert torch.equal(found, load(source).model(_images(64)))


def test_an_adapter_of_vit_s_is_less_than_a_twentieth_of_the_network(tmp_path):
    source = _base(tmp_path / "base", "vit_small_patch16_224", 224)
    network = _adapter(tmp_path / "adapter", source, 224, rank=8)
    trained = sum(v.numel() for v in network.parameters() if v.requires_grad)
    total = sum(v.numel() for v in load_network(source).parameters())
    assert 0.02 < trained / total < 0.05

    def size(folder):
        return sum(path.stat().st_size for path in (tmp_path / folder).iterdir())

    assert size("adapter") < 0.05 * size("base")


def test_an_adapter_is_saved_reproducibly(tmp_path):
    source = _base(tmp_path / "base", img_size=64)
    for name in ("one", "two"):
        _adapter(tmp_path / name / "model", source, 64, trained=False)
    one, two = (sorted((tmp_path / n / "model").iterdir()) for n in ("one", "two"))
    assert [p.name for p in one] == [p.name for p in two]
    same = [a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True)]
    assert [p.name for p, is_same in zip(one, same, strict=True) if not is_same] == ["README.md"]


@pytest.fixture
def folder(tmp_path):
    _adapter(tmp_path / "adapter", _base(tmp_path / "base", img_size=64), 64)
    return tmp_path / "adapter"


def test_other_base_weights_at_the_same_path_are_refused(folder):
    _base(folder.parent / "base", img_size=64, seed=1)
    with pytest.raises(StainsslError, match=r"has [0-9a-f]{16}… here: these are other weights"):
        load(folder)


def test_an_adapter_without_its_base_weights_is_refused(folder):
    shutil.move(folder.parent / "base", folder.parent / "elsewhere")
    with pytest.raises(StainsslError, match=r"base, which cannot be loaded: .*`source` in base"):
        load(folder)
    base = json.loads((folder / "base.json").read_text())
    base["source"] = f"local-dir:{folder.parent / 'elsewhere'}"  # as the message says
    (folder / "base.json").write_text(json.dumps(base))
    assert load(folder).dim == 64


def test_an_adapter_without_base_json_is_refused(folder):
    (folder / "base.json").unlink()
    with pytest.raises(StainsslError, match=r"no base.json naming its base weights"):
        load(folder)


@pytest.mark.parametrize("change", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "LOHA"}])
def test_adapters_other_than_plain_lora_are_refused(folder, change):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(StainsslError, match=r"only plain LoRA is supported"):
        load(folder)


def test_missing_layers_and_layers_of_another_shape_are_named(folder):
    file = folder / adapters.WEIGHTS
    found = load_file(file)
    key = next(k for k in found if k.endswith("blocks.0.attn.qkv.lora_B.weight"))
    save_file(found | {key: found[key][:-1].clone()}, file)
    with pytest.raises(StainsslError, match=r"a layer 'blocks.0.attn.qkv' of 191 × 64 weights"):
        load(folder)
    save_file({k: v for k, v in found.items() if k != key}, file)
    with pytest.raises(StainsslError, match=r"'blocks.0.attn.qkv.lora_B.weight' is missing"):
        load(folder)


def test_an_incomplete_file_is_an_error(folder):
    file = folder / adapters.WEIGHTS
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StainsslError, match="not a complete weights file"):
        load(folder)


def test_an_adapter_on_top_of_an_adapter(folder):
    top = folder.parent / "top"
    network = _adapter(top, f"local-dir:{folder}", 64)
    with torch.inference_mode():
        found = load(top).model(_images(64))
        torch.testing.assert_close(found, network(_images(64)), atol=1e-5, rtol=1e-4)
    _adapter(folder, f"local-dir:{folder.parent / 'base'}", 64, rank=3)
    with pytest.raises(StainsslError, match="these are other weights"):
        load(top)


@pytest.mark.parametrize("name", ["virchow2", "uni2-h"])
def test_an_adapter_to_a_network_that_timms_format_cannot_store(tmp_path, monkeypatch, name):
    recipe = _tiny(monkeypatch, name)
    size = {"img_size": recipe.input_px, "num_classes": 0}
    model = _randomize(
        timm.create_model(recipe.architecture, **size, **with_classes(recipe.arguments))
    )
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    source = f"{name}@{tmp_path / 'model.safetensors'}"
    network = _adapter(tmp_path / "adapter", source, recipe.input_px)
    found, images = load(tmp_path / "adapter"), _images(recipe.input_px)
    with torch.inference_mode():
        expected = network(images)
        torch.testing.assert_close(found.model(images), expected, atol=1e-5, rtol=1e-4)
        assert (expected - load(source).model(images)).norm() > 0.01 * expected.norm()
    with pytest.raises(StainsslError, match=f"init {name}: timm's format cannot store"):
        initial_backbone(f"local-dir:{tmp_path / 'adapter'}", recipe.input_px)
    again = _adapter(tmp_path / "again", f"local-dir:{tmp_path / 'adapter'}", recipe.input_px)
    with torch.inference_mode():
        found = load(tmp_path / "again").model(images)
        torch.testing.assert_close(found, again(images), atol=1e-5, rtol=1e-4)
    heads, rates = parameter_groups(again, [], weight_decay=0.1, lr_backbone=1.0, layer_decay=0.5)
    assert heads == []
    assert len({group["lr"] for group in rates}) > 1
    trained = {id(v) for v in again.parameters() if v.requires_grad}
    assert {id(v) for group in rates for v in group["params"]} == trained
