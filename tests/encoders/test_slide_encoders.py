"""Slide encoders: weights stored in the authors' format, against what their repositories compute.

The three forward passes are written out from the repositories in plain tensors.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from stainssl.cohort.encoder_checks import problems
from stainssl.cohort.encoder_warnings import warnings
from stainssl.config import parse
from stainssl.encoders import loading, slide_encoders, slide_pooling, slide_recipes
from stainssl.errors import StainsslError


def _linear(weights, name, inputs, outputs):
    weights[f"{name}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
    weights[f"{name}.bias"] = torch.randn(outputs) / 4


def _norm(weights, name, width):
    weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.rand(width) + 0.5, torch.randn(width)


def _gated(weights, name, width, hidden):
    _linear(weights, f"{name}.attention_a.0", width, hidden)
    _linear(weights, f"{name}.attention_b.0", width, hidden)
    _linear(weights, f"{name}.attention_c", hidden, 1)


def _apply(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _score(weights, name, x):
    a = torch.tanh(_apply(weights, f"{name}.attention_a.0", x))
    b = torch.sigmoid(_apply(weights, f"{name}.attention_b.0", x))
    return _apply(weights, f"{name}.attention_c", a * b)


def _feather(folder, inputs=768):
    weights = {}
    _linear(weights, "model.patch_embed.0", inputs, 512)
    _gated(weights, "model.global_attn", 512, 384)
    save_file(weights, folder / "model.safetensors")

    def forward(x):
        h = _apply(weights, "model.patch_embed.0", x).relu()
        return (_score(weights, "model.global_attn", h).softmax(0).T @ h)[0]

    return forward


def _chief(folder):
    weights = {"organ_embedding": torch.randn(19, 768)}
    _linear(weights, "attention_net.0", 768, 512)
    _gated(weights, "attention_net.3", 512, 256)
    _linear(weights, "classifiers", 512, 2)
    _linear(weights, "instance_classifiers.0", 512, 2)
    _linear(weights, "att_head.fc1", 512, 256)
    _linear(weights, "text_to_vision.0", 768, 512)
    torch.save(weights, folder / "CHIEF_pretraining.pth")

    def forward(x):
        h = _apply(weights, "attention_net.0", x).relu()
        return (_score(weights, "attention_net.3", h).softmax(0).T @ x)[0]

    return forward


MADELEINE = {
    "patch_embedding_dim": 512, "wsi_encoder_hidden_dim": 512, "n_heads": 4,
    "activation": "softmax", "wsi_encoder": "abmil",
}  # fmt: skip


def _madeleine(folder):
    weights, embed = {}, "module.wsi_embedders.pre_attn"
    for index, outputs in ((0, 512), (4, 512), (8, 2048)):
        _linear(weights, f"{embed}.{index}", 512, outputs)
        _norm(weights, f"{embed}.{index + 1}", outputs)
    for head in range(4):
        _gated(weights, f"module.wsi_embedders.attn.{head}", 512, 512)
    _linear(weights, "module.projector", 2048, 512)
    _linear(weights, "module.token_projector", 2048, 128)
    torch.save(weights, folder / "model.pt")
    (folder / "model_config.json").write_text(json.dumps(MADELEINE))

    def forward(x):
        for index in (0, 4, 8):
            norm = f"{embed}.{index + 1}"
            x = _apply(weights, f"{embed}.{index}", x)
            x = F.layer_norm(x, x.shape[-1:], weights[f"{norm}.weight"], weights[f"{norm}.bias"])
            x = F.gelu(x)
        x = x.reshape(len(x), 512, 4)  # b t (e c)
        heads = [
            _score(weights, f"module.wsi_embedders.attn.{c}", x[..., c]).softmax(0)
            for c in range(4)
        ]
        pooled = (x * torch.stack(heads, dim=-1)).sum(0)
        return _apply(weights, "module.projector", pooled.reshape(-1))

    return forward


LAYOUTS = {
    "feather": (_feather, "conch-v1.5"),
    "feather-uni2-h": (lambda folder: _feather(folder, 1536), "uni2-h"),
    "feather-uni": (lambda folder: _feather(folder, 1024), "uni"),
    "chief": (_chief, "ctranspath"),
    "madeleine": (_madeleine, "conch-madeleine"),
}


def _config(slide, tiles):
    return parse({
        "cohorts": {"d": {"demo": {}}},
        "encoders": {"tiles": {"weights": tiles}, "s": {"weights": slide, "vectors": "tiles"}},
    })  # fmt: skip


def test_every_recipe_is_compared():
    assert set(LAYOUTS) == set(slide_recipes.RECIPES)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_embedding_is_what_the_authors_code_computes(name, tmp_path, monkeypatch):
    torch.manual_seed(3)
    make, tiles = LAYOUTS[name]
    forward = make(tmp_path)
    loaded, recipe = slide_encoders.load(f"{name}@{tmp_path}"), slide_recipes.RECIPES[name]
    vectors = torch.randn(300, recipe.tile_dim)
    found = loaded(vectors.numpy())
    assert found.shape == (recipe.dim,)
    np.testing.assert_allclose(found, forward(vectors), atol=1e-4)
    monkeypatch.setattr(slide_pooling, "BLOCK", 64)  # the same if a slide is read in blocks
    np.testing.assert_allclose(loaded(vectors.numpy()), found, atol=1e-5)
    assert not list(problems(_config(f"{name}@{tmp_path}", tiles)))


def test_weights_that_do_not_fit_are_named(tmp_path):
    _feather(tmp_path, 1024)
    with pytest.raises(StainsslError, match=r"have another shape: embed\.0\.weight"):
        slide_encoders.load(f"feather@{tmp_path}")
    [found] = problems(_config(f"feather@{tmp_path}", "conch-v1.5"))
    assert "encoders.s.weights" in found
    assert "embed.0.weight" in found
    with pytest.raises(StainsslError, match=r"no CHIEF_pretraining\.pth there"):
        slide_encoders.load(f"chief@{tmp_path}")


def test_madeleine_needs_a_supported_config(tmp_path):
    _madeleine(tmp_path)
    config = tmp_path / "model_config.json"
    config.write_text(json.dumps(MADELEINE | {"activation": "sigmoid"}))
    with pytest.raises(StainsslError, match="activation 'sigmoid'"):
        slide_encoders.load(f"madeleine@{tmp_path}")
    config.unlink()
    with pytest.raises(StainsslError, match=r"needs the model_config\.json .* folder with both"):
        slide_encoders.load(f"madeleine@{tmp_path}")


@pytest.mark.parametrize(
    ("slide", "tiles", "pattern"),
    [
        ("feather", "uni", "feather needs embeddings by conch-v1.5, which encoders.tiles is not"),
        ("feather-uni_v2", "uni", "feather-uni2-h needs embeddings by uni2-h"),
        ("chief", "ctranspath", "chief is not on the hub: download CHIEF_pretraining.pth"),
        ("titan", "conch-v1.5", "titan needs code from the hub.* slide_features"),
        ("fether", "conch-v1.5", "'fether' is not a slide encoder; did you mean 'feather'"),
    ],
)
def test_check_reports_names_and_tile_encoders_that_do_not_fit(slide, tiles, pattern):
    found = list(problems(_config(slide, tiles)))
    assert any(re.search(pattern, problem) for problem in found), found


@pytest.mark.parametrize("name", ["chief", "prism", "FEATHER"])
def test_slide_encoders_are_refused_as_tile_encoders(name):
    config = parse({"cohorts": {"d": {"demo": {}}}, "encoders": {"x": {"weights": name}}})
    [found] = problems(config)
    assert "in 'vectors'" in found or "slide_features" in found
    with pytest.raises(StainsslError, match=r"in 'vectors'|slide_features"):
        loading.load(name)


def test_tiles_of_another_scale_are_warned_of():
    found = " ".join(warnings(_config("chief", "uni")))
    assert "encoders.s: chief was trained at 1 µm/px, and tiling 'default' has 0.5" in found


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vectors": "a"}, "give one of 'method'"),
        ({"vectors": "a", "method": "random"}, "names another encoder: give 'center: site'"),
        ({"vectors": "a", "features": "clam:x"}, "names another encoder: give 'center: site'"),
        ({"vectors": "a", "center": "site", "weights": "chief"}, "give one of 'method'"),
        ({"center": "site"}, "center: site needs 'vectors: NAME'"),
        ({"vectors": "a", "weights": "chief", "preprocess": "reference"}, "not for this encoder"),
        ({"vectors": "a", "center": "site", "seeds": [1]}, "seeds: not for this encoder"),
        ({"vectors": "b", "center": "site"}, "no such name 'b'"),
        ({"vectors": "x", "center": "site"}, "x takes those of x: a cycle"),
    ],
)
def test_invalid_uses_of_vectors_are_refused(keys, message):
    with pytest.raises(StainsslError, match=message):
        parse({"cohorts": {"d": {"demo": {}}}, "encoders": {"a": {"weights": "uni"}, "x": keys}})
