"""Comparison with LazySlide's model zoo, if it is installed (PyPI: lazyslide-models).

Its classes prepare the tiles, pool the tokens and give the architecture's arguments; only the
download is replaced by a tiny network with random weights, which both load.
"""

from __future__ import annotations

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from stainssl.encoders.loading import load, with_classes
from tests.encoders.test_recipes import (
    IMAGES,
    SHAPE,
    TINY,
    TRANSFORMERS,
    _cosine,
    _randomize,
    _tiny,
)

zoo = pytest.importorskip("lazyslide_models.vision")
gpfm = pytest.importorskip("lazyslide_models.vision.gpfm")
CLASSES = {
    "uni": "UNI", "uni2-h": "UNI2", "virchow": "Virchow", "virchow2": "Virchow2",
    "prov-gigapath": "GigaPath", "h-optimus-0": "HOptimus0", "h-optimus-1": "HOptimus1",
    "lunit-vits16": "LunitDINOPatch16", "lunit-vits8": "LunitDINOPatch8",
}  # fmt: skip


def _assert_agreement(reference, name, folder):
    prepare = reference.get_transform()
    tiles = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in IMAGES]
    expected = reference.encode_image(torch.stack([prepare(tile) for tile in tiles]))
    assert _cosine(load(f"{name}@{folder}")(IMAGES), expected) > 0.9995


@pytest.mark.parametrize("name", CLASSES)
def test_embeddings_are_those_of_lazyslide(monkeypatch, tmp_path, name):
    recipe, create = _tiny(monkeypatch, name), timm.create_model

    def stored(source, **keys):
        """Arguments of the hub's config and of LazySlide, without those of the download."""
        own = {k: v for k, v in keys.items() if k not in ("pretrained", "token", *TINY)}
        known = {"img_size": 224, "num_classes": 0, **with_classes(recipe.arguments), **own}
        card = _randomize(create(recipe.architecture, **known))
        torch.save(card.state_dict(), tmp_path / recipe.files[-1])
        return card

    monkeypatch.setattr(timm, "create_model", stored)
    reference = getattr(zoo, CLASSES[name])()
    monkeypatch.setattr(timm, "create_model", create)
    _assert_agreement(reference, name, tmp_path)


def test_h0_mini_with_its_config(monkeypatch, tmp_path):
    _tiny(monkeypatch, "h0-mini")
    create, name = timm.create_model, "vit_base_patch14_dinov2"
    args = {"init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.33334, "global_pool": "", **TINY}

    def stored(_, **keys):
        own = {key: keys[key] for key in ("mlp_layer", "act_layer")}
        card = _randomize(create(name, num_classes=0, img_size=224, **args, **own))
        save_file(card.state_dict(), tmp_path / "model.safetensors")
        return card

    monkeypatch.setattr(timm, "create_model", stored)
    reference = zoo.H0Mini()
    monkeypatch.setattr(timm, "create_model", create)
    config = {"architecture": name, "model_args": args}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _assert_agreement(reference, "h0-mini", tmp_path)


def test_gpfm_from_a_torch_file(monkeypatch, tmp_path):
    recipe, create = _tiny(monkeypatch, "gpfm"), timm.create_model
    args = {"img_size": 224, "num_classes": 0, **recipe.arguments}
    torch.save(_randomize(create(recipe.architecture, **args)).state_dict(), tmp_path / "GPFM.pth")
    monkeypatch.setattr(gpfm, "hf_hub_download", lambda **_: tmp_path / "GPFM.pth")
    monkeypatch.setattr(timm, "create_model", lambda n, **keys: create(n, **keys, **TINY))
    reference = zoo.GPFM()
    monkeypatch.setattr(timm, "create_model", create)
    _assert_agreement(reference, "gpfm", tmp_path)


def test_midnight_from_transformers(monkeypatch, tmp_path):
    transformers = pytest.importorskip("transformers")
    _tiny(monkeypatch, "midnight")
    make, keys, *_ = TRANSFORMERS["midnight"]
    card = _randomize(make(**SHAPE, **keys))
    card.save_pretrained(tmp_path)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda _: card)
    _assert_agreement(zoo.Midnight(), "midnight", tmp_path)
