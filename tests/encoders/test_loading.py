"""Encoders are loaded with their preprocessing; saved encoders load with timm alone."""

from __future__ import annotations

import json
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import save_file

from stainssl.encoders import loading as encoders
from stainssl.encoders import saving
from stainssl.encoders.loading import load, new_backbone
from stainssl.encoders.saving import save_local_dir
from stainssl.errors import StainsslError

FAMILIES = ["test_resnet", "test_convnext", "test_vit"]

MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.3, 0.25)
IMAGES = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model, args = new_backbone("test_resnet", 32)
    save_local_dir(
        model.to(memory_format=torch.channels_last), tmp_path / "ours" / "model",
        backbone="test_resnet", input_size=32, mean=MEAN, std=STD, model_args=args,
        card={"method": "none", "patients seen": ["p1"]},
    )  # fmt: skip
    return tmp_path / "ours" / "model", model.eval()


def test_a_saved_encoder_loads_with_timm_alone(saved):
    path, model = saved
    loaded = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=0).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(x), model(x))
    found = timm.data.resolve_model_data_config(loaded)
    assert tuple(found["input_size"]) == (3, 32, 32)
    assert tuple(found["mean"]) == MEAN
    assert tuple(found["std"]) == STD
    assert found["crop_pct"] == 1


def test_the_model_card_has_name_keys_and_versions(saved):
    text = (saved[0] / "README.md").read_text(encoding="utf-8")
    assert "# ours" in text
    assert '| patients seen | ["p1"] |' in text
    assert "| torch |" in text


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_preprocessing_is_that_of_the_model(saved, prefix):
    path, model = saved
    encoder = load(f"{prefix}{path}")
    assert (encoder.dim, encoder.input_size) == (96, 32)
    pixels = torch.nn.functional.interpolate(
        IMAGES / 255, (32, 32), mode="bilinear", antialias=True
    )
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        expected = model((pixels - mean) / std)
    torch.testing.assert_close(encoder(IMAGES), expected, atol=1e-4, rtol=1e-4)
    assert encoder(IMAGES).dtype == torch.float32


def test_the_embedding_of_a_tile_does_not_depend_on_its_batch(saved):
    encoder = load(saved[0])
    torch.testing.assert_close(encoder(IMAGES)[1:2], encoder(IMAGES[1:2]), atol=1e-5, rtol=1e-4)


def test_a_failed_save_leaves_the_previous_model(saved, monkeypatch):
    path, model = saved
    before = (path / "model.safetensors").read_bytes()

    def fails(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(saving, "save_for_hf", fails)
    with pytest.raises(OSError, match="disk full"):
        save_local_dir(model, path, backbone="test_resnet", input_size=64, mean=MEAN, std=STD,
                       model_args={}, card={})  # fmt: skip
    assert (path / "model.safetensors").read_bytes() == before
    assert json.loads((path / "config.json").read_text())["pretrained_cfg"]["input_size"][1] == 32


def test_a_vision_transformer_is_built_for_its_input_size(tmp_path):
    model, args = new_backbone("test_vit", 64)
    save_local_dir(model, tmp_path / "m", backbone="test_vit", input_size=64, mean=MEAN, std=STD,
                   model_args=args, card={})  # fmt: skip
    encoder = load(tmp_path / "m")
    assert encoder.input_size == 64
    assert encoder(IMAGES).shape == (3, encoder.dim)


def test_a_timm_name_with_a_tag_is_saved_and_loaded(tmp_path):
    model, args = new_backbone("test_resnet.r160_in1k", 32)
    save_local_dir(model, tmp_path / "m", backbone="test_resnet.r160_in1k", input_size=32,
                   mean=MEAN, std=STD, model_args=args, card={})  # fmt: skip
    assert load(tmp_path / "m").dim == 96


@pytest.mark.parametrize("prefix", ["", "timm:"])
def test_a_timm_name_loads_its_pretrained_weights(monkeypatch, prefix):
    calls = []
    create_model = timm.create_model

    def offline(name, pretrained, num_classes):
        calls.append((name, pretrained))
        return create_model(name, num_classes=num_classes)

    monkeypatch.setattr(encoders.timm, "create_model", offline)
    assert load(f"{prefix}test_resnet").dim == 96
    assert calls == [("test_resnet", True)]


def test_a_gated_encoder_without_access_suggests_to_log_in(monkeypatch):
    def refuses(repository, file, revision):
        raise GatedRepoError(f"403: access to {repository} is restricted", response=Mock())

    monkeypatch.setattr(encoders, "hf_hub_download", refuses)
    with pytest.raises(
        StainsslError,
        match=r"MahmoodLab/UNI\) cannot be loaded \(GatedRepoError.*restricted.*`hf auth login`",
    ):
        load("uni")


@pytest.mark.parametrize("source", ["hf-hub:nobody/nothing", "timm:test_resnet.r160_in1k"])
def test_weights_that_cannot_be_downloaded_are_an_error(monkeypatch, source):
    def refuses(*args, **kwargs):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(encoders.timm, "create_model", refuses)
    with pytest.raises(StainsslError, match=r"cannot be loaded \(ConnectionError: no route to"):
        load(source)


def test_a_misspelt_name_suggests_the_closest():
    with pytest.raises(StainsslError, match="did you mean 'resnet18'"):
        load("resnet81")
    with pytest.raises(StainsslError, match=r"backbone 'resnot50'.*did you mean 'resnet50'"):
        new_backbone("resnot50", 32)


def test_an_incomplete_folder_is_an_error(saved):
    path = saved[0]
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StainsslError, match="incomplete"):
        load(path)
    with pytest.raises(StainsslError, match="neither a folder"):
        load(path / "nothing")


def test_the_same_seed_gives_the_same_random_weights():
    def weights():
        torch.manual_seed(3)
        return np.concatenate(
            [p.detach().ravel() for p in new_backbone("test_resnet", 32)[0].parameters()]
        )

    np.testing.assert_array_equal(weights(), weights())


def _embedded_by_timm(source: str) -> torch.Tensor:
    """Embeddings of the images, prepared by timm's own transform of the model."""
    from PIL import Image

    model = timm.create_model(source, pretrained=True, num_classes=0)
    data = timm.data.resolve_model_data_config(model)
    assert data["crop_pct"] == 1
    transform = timm.data.create_transform(**data, is_training=False)
    with torch.no_grad():
        tiles = [transform(Image.fromarray(tile.permute(1, 2, 0).numpy())) for tile in IMAGES]
        return model.eval()(torch.stack(tiles))


def _save(folder, name, size=64):
    torch.manual_seed(0)
    model, args = new_backbone(name, size)
    save_local_dir(model, folder, backbone=name, input_size=size, mean=MEAN, std=STD,
                   model_args=args, card={})  # fmt: skip
    return model.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_preprocessing_agrees_with_timm(tmp_path, name):
    _save(tmp_path / "m", name)
    found = load(f"local-dir:{tmp_path / 'm'}")(IMAGES)
    expected = _embedded_by_timm(f"local-dir:{tmp_path / 'm'}")
    assert found.shape == expected.shape
    # Pillow rounds the resized tile to bytes and torch does not.
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("how", ["safetensors", "torch", "lightning", "dino"])
def test_a_weights_file_loads_into_the_named_architecture(tmp_path, name, how):
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=0).eval()
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    path = tmp_path / ("w.safetensors" if how == "safetensors" else "w.pth")
    head = torch.zeros(4, 4)
    if how == "safetensors":
        save_file(weights, path)
    elif how == "torch":
        torch.save(weights, path)
    elif how == "lightning":
        named = {f"model.backbone.{k}": v for k, v in weights.items()}
        torch.save({"epoch": 3, "state_dict": named | {"model.head.weight": head}}, path)
    else:
        named = {f"module.backbone.{k}": v for k, v in weights.items()}
        torch.save({"teacher": named, "student": {"x": head}}, path)
    encoder = load(f"{name}@{path}")
    data = timm.data.resolve_model_data_config(model)
    assert encoder.input_size == data["input_size"][1]
    x = torch.rand(2, 3, encoder.input_size, encoder.input_size)
    with torch.no_grad():
        torch.testing.assert_close(encoder.model(x), model(x), atol=1e-5, rtol=1e-4)


def test_weights_of_another_architecture_are_an_error(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    with pytest.raises(StainsslError, match=r"of test_vit: \d+ are missing: .*unexpected"):
        load(f"test_vit@{path}")


def test_a_file_with_code_and_an_incomplete_file_are_errors(tmp_path):
    model = timm.create_model("test_resnet", num_classes=0)
    torch.save(model, tmp_path / "whole.pth")  # a pickled model
    (tmp_path / "half.safetensors").write_bytes(b"12345678")
    for name in ("whole.pth", "half.safetensors"):
        with pytest.raises(StainsslError, match="contains code"):
            load(f"test_resnet@{tmp_path / name}")
    with pytest.raises(StainsslError, match="no such weights file"):
        load(f"test_resnet@{tmp_path / 'none.pth'}")


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_gives_the_same_embeddings_up_to_rounding(tmp_path, name):
    """float16 as on a GPU, on the CPU."""
    _save(tmp_path / "m", name)
    encoder = load(tmp_path / "m")
    full = encoder(IMAGES)
    x = torch.nn.functional.interpolate(IMAGES / 255, (64, 64), mode="bilinear", antialias=True)
    x = ((x.clamp(0, 1) - encoder.mean) / encoder.std).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        half = encoder.model(x).float()
    error = (half - full).norm(dim=1) / full.norm(dim=1)
    assert error.max() < 4 * torch.finfo(torch.float16).eps
