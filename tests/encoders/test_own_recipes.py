"""Recipes in the config: weights are built, preprocessed and pooled as the recipe says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save, save_file
from torchvision import transforms as T

from stainssl.cohort.encoder_checks import problems
from stainssl.config import Config, Recipe, parse
from stainssl.encoders import adapters
from stainssl.encoders.initial import initial_backbone
from stainssl.encoders.loading import load, weights_digest
from stainssl.encoders.saving import save_local_dir
from stainssl.encoders.weights import read_source
from stainssl.errors import StainsslError
from stainssl.plan.encoders import given_identity, pretrain, source_of
from tests.encoders.fake_hub import COMMITS, cache, put

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.3, 0.25)
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "init_values": "1e-5", "reg_tokens": 4}
VIT = {"architecture": "vit_small_patch16_224", "mean": MEAN, "std": STD, "input_px": 64}
TILES = torch.nn.functional.interpolate(
    torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8))).float(),
    (96, 96), mode="bilinear",
).to(torch.uint8)  # fmt: skip
TRAIN = {"method": "simclr", "train": {"cohorts": ["d"]}}


def _config(**encoder) -> Config:
    text = yaml.safe_dump({"cohorts": {"d": {"demo": {}}}, "encoders": {"mine": encoder}})
    return parse(yaml.safe_load(text))


def _source(**encoder) -> str:
    return str(_config(**encoder).encoders["mine"].source)


def _randomize(model):
    torch.manual_seed(1)
    for value in model.parameters():
        value.data = torch.randn_like(value) * 0.2
    return model.eval()


def _prepared(resize, crop, interpolation="bicubic"):
    """The tiles after the transform of a model card."""
    steps = T.Compose([
        T.Resize(resize, T.InterpolationMode(interpolation)), T.CenterCrop(crop), T.ToTensor(),
        T.Normalize(MEAN, STD),
    ])  # fmt: skip
    return torch.stack([steps(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in TILES])


def _assert_same(found, expected):
    assert found.shape == expected.shape
    # Pillow rounds the resized tile to bytes and torch does not.
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.9995


def _swiglu():
    args = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return _randomize(timm.create_model("vit_small_patch16_224", num_classes=0, img_size=64, **args,
                                        init_values=1e-5, reg_tokens=4, **TINY))  # fmt: skip


def _pooled(model, x, pooling):
    with torch.no_grad():
        tokens = model.forward_features(x)
    first, patches = tokens[:, 0], tokens[:, 5:].mean(1)
    return {"cls": first, "mean": patches, "cls+mean": torch.cat([first, patches], 1)}[pooling]


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_hub_weights_give_the_embeddings_of_their_own_loader(tmp_path, monkeypatch, pooling):
    model = _swiglu()
    put(cache(tmp_path, monkeypatch), "somebody/net", "model.safetensors",
        save({k: v.contiguous() for k, v in model.state_dict().items()}), COMMITS[0])  # fmt: skip
    recipe = {**VIT, "arguments": {**TINY, **SWIGLU}, "pooling": pooling, "resize_px": 72,
              "dim": 96 if pooling == "cls+mean" else 48}  # fmt: skip
    config = _config(weights="hf-hub:somebody/net", recipe=recipe)
    assert list(problems(config)) == []
    encoder = load(source_of(config, "mine").model)
    _assert_same(encoder(TILES), _pooled(model, _prepared(72, 64), pooling))


def test_a_transformers_folder_gives_the_embeddings_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
                                    intermediate_size=192, image_size=64)  # fmt: skip
    model = _randomize(transformers.ViTModel(config, add_pooling_layer=False))
    model.save_pretrained(tmp_path)
    recipe = {**VIT, "arguments": TINY, "layout": "transformers", "interpolation": "bilinear"}
    given = _config(weights=f"local-dir:{tmp_path}", recipe=recipe)
    assert list(problems(given)) == []
    with torch.no_grad():
        expected = model(_prepared(64, 64, "bilinear")).last_hidden_state[:, 0]
    _assert_same(load(source_of(given, "mine").model)(TILES), expected)


def test_a_file_of_a_convolutional_network(tmp_path):
    model = _randomize(timm.create_model("test_resnet", num_classes=0))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    recipe = {"mean": MEAN, "std": STD, "pooling": "average", "input_px": 96, "precision": "32"}
    source = _source(weights=f"test_resnet@{tmp_path / 'w.pth'}", recipe=recipe)
    encoder = load(source)
    with torch.no_grad():
        _assert_same(encoder(TILES), model(_prepared(96, 96)))
    assert not encoder.half


@pytest.fixture
def file(tmp_path):
    model = _randomize(
        timm.create_model("vit_small_patch16_224", num_classes=0, img_size=64, **TINY)
    )
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return f"vit_small_patch16_224@{tmp_path / 'model.safetensors'}"


def _recipe(**keys):
    return {"mean": MEAN, "std": STD, "input_px": 64, "arguments": TINY, **keys}


@pytest.mark.parametrize(("keys", "message"), [
    ({"arguments": {**TINY, "depth": 3}}, "are missing: blocks.2."),
    ({"arguments": {**TINY, "reg_tokens": 4}}, "1 are missing: reg_token"),
    ({"arguments": {**TINY, "nonsense": 1}}, "timm cannot build vit_small_patch16_224 with"),
    ({"arguments": {**TINY, "mlp_layer": "Nonsense"}}, "Named layers: Mlp, GluMlp"),
    ({"dim": 64}, "its embeddings have 48 dimensions, but the recipe says 64"),
    ({"pooling": "cls+mean", "dim": 48}, "embeddings have 96 dimensions, but the recipe says 48"),
    ({"arguments": {**TINY, "global_pool": ""}}, None),  # the recipe's pooling takes precedence
])  # fmt: skip
def test_check_reports_recipes_that_do_not_fit_the_weights(file, keys, message):
    config = _config(weights=file, recipe=_recipe(**keys))
    found = list(problems(config))
    assert len(found) == (message is not None)
    if message:
        assert message in found[0]
        assert found[0].startswith("encoders.mine.weights: ")
        assert '"mean"' not in found[0]  # the name, not the recipe as JSON
        with pytest.raises(StainsslError):
            load(str(config.encoders["mine"].source))


def test_check_suggests_the_closest_timm_name():
    recipe = {**_recipe(), "architecture": "vit_smal_patch16_224"}
    [found] = problems(_config(weights="hf-hub:a/b", recipe=recipe))
    assert "is not a timm name; did you mean 'vit_small_patch16_224'" in found


@pytest.mark.parametrize(("encoder", "message"), [
    ({"weights": "uni", "recipe": VIT}, "'recipe' is for weights without one: hf-hub:"),
    ({"weights": "hf-hub:a/b", "recipe": _recipe()}, "the timm name of the network: give it"),
    ({"weights": "resnet18@f", "recipe": VIT}, "'resnet18' has it already"),
    ({"weights": "hf-hub:a/b", "recipe": {**VIT, "meen": 1}}, "recipe.meen; did you mean 'mean'?"),
    ({"weights": "hf-hub:a/b", "recipe": {"architecture": "x", "std": STD}},
     "mine.recipe.mean is missing"),
    ({"weights": "hf-hub:a/b", "recipe": {**VIT, "mean": [123, 116, 103]}}, "less than or equal"),
    ({"weights": "hf-hub:a/b", "recipe": {**VIT, "resize_px": 32}}, "must not be smaller"),
    ({"weights": "hf-hub:a/b", "recipe": {**VIT, "pooling": "attention"}}, "needs 'dim'"),
    ({"weights": "hf-hub:a/b", "recipe": {**VIT, "pooling": "max"}}, "Input should be 'cls'"),
    ({"method": "random", "recipe": VIT}, "'recipe' is for weights"),
    ({"method": "random", "revision": "x"}, "'revision' is only for weights from the hub"),
    ({"weights": "uni@/there", "revision": "x"}, "'revision' is only for weights from the hub"),
])  # fmt: skip
def test_incompatible_keys_are_refused(encoder, message):
    with pytest.raises(StainsslError) as error:
        _config(**encoder)
    assert message in str(error.value)


def test_recipe_keys_of_an_encoder_that_starts_from_another_are_refused():
    with pytest.raises(StainsslError, match=r"set them at encoders\.base"):
        parse({
            "cohorts": {"d": {"demo": {}}},
            "encoders": {
                "base": {"weights": "hf-hub:a/b", "recipe": VIT},
                "next": {**TRAIN, "init": "base", "revision": "x"},
            },
        })  # fmt: skip


def test_the_documented_example_is_valid_and_the_table_has_every_key():
    page = (Path(__file__).resolve().parents[2] / "docs" / "encoders.md").read_text()
    own = page[page.index("## Your own recipe") :]
    block = own[own.index("```yaml") + 7 :].partition("```")[0]
    data = {"cohorts": {"d": {"demo": {}}}, **yaml.safe_load(block)}
    assert list(problems(parse(data))) == []
    rows = " ".join(line.split("|")[1] for line in own.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`(\w+)`", rows.partition("`weights:`")[0])) >= set(Recipe.model_fields)


OTHER = {
    "architecture": "vit_base_patch16_224", "arguments": {"depth": 3}, "layout": "transformers",
    "files": ["w.pth"], "pooling": "mean", "dim": 48, "mean": [0.5] * 3, "std": [0.5] * 3,
    "input_px": 96, "stored_px": 96, "resize_px": 128, "interpolation": "bilinear",
    "precision": "32", "mpp": [0.25], "tile_px": 512, "license": "MIT", "gated": True,
}  # fmt: skip


def test_keys_that_affect_embeddings_change_the_identity():
    def identity(**keys):
        encoder = _config(weights="hf-hub:a/b", recipe={**VIT, **keys}).encoders["mine"]
        return given_identity(encoder)

    changed = {key for key, value in OTHER.items() if identity(**{key: value}) != identity()}
    assert set(OTHER) == set(Recipe.model_fields)
    assert set(OTHER) - changed == {"mpp", "tile_px", "license", "gated"}  # only for information


def test_training_from_a_recipe_gives_a_model_that_loads_without_it(file, tmp_path):
    source = _source(weights=file, recipe=_recipe())
    initial = initial_backbone(source, 96)
    folder = tmp_path / "trained" / "model"
    save_local_dir(initial.model, folder, backbone=initial.name, input_size=96, mean=initial.mean,
                   std=initial.std, model_args=initial.model_args, card={})  # fmt: skip
    assert initial.mean == MEAN
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        expected = initial.model.eval()(x)
        torch.testing.assert_close(load(folder).model(x), expected, atol=1e-5, rtol=1e-4)
    config = _config(**TRAIN, init=file, recipe=_recipe())
    assert read_source(str(pretrain(config, "mine").init)) == read_source(source)


def test_the_base_of_an_adapter_includes_the_recipe(file, tmp_path):
    source = _source(weights=file, recipe=_recipe(pooling="cls+mean"))
    folder = tmp_path / "adapter"
    folder.mkdir()
    sha256 = weights_digest(source, load(source).model)
    adapters.write_base(folder, adapters.Base(source, sha256))
    base = adapters.read_base(folder)
    assert (load(base.source).dim, base.sha256) == (96, load(source).weights_sha256)
