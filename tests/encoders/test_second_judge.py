"""A second judge where it is installed: LazySlide's model zoo (PyPI: lazyslide-models).

Its own classes prepare the tiles, pool the tokens, and name the architecture's arguments; only the
download is replaced by a tiny network of random weights, which both load.
"""

from __future__ import annotations

import pytest
import timm
import torch
from PIL import Image

from stainssl.encoders.loading import load, with_classes
from tests.encoders.test_recipes import IMAGES, TINY, _cosine, _shaken, _tiny

zoo = pytest.importorskip("lazyslide_models.vision")
CLASSES = {
    "uni": "UNI", "uni2-h": "UNI2", "virchow": "Virchow", "virchow2": "Virchow2",
    "prov-gigapath": "GigaPath", "h-optimus-0": "HOptimus0", "h-optimus-1": "HOptimus1",
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_vectors_are_those_of_lazyslide(monkeypatch, tmp_path, name):
    recipe, create = _tiny(monkeypatch, name), timm.create_model

    def stored(source, **keys):
        """What the hub's config says, and what LazySlide adds to it, but for the download's."""
        own = {k: v for k, v in keys.items() if k not in ("pretrained", "token", *TINY)}
        known = {"img_size": 224, "num_classes": 0, **with_classes(recipe.arguments), **own}
        card = _shaken(create(recipe.architecture, **known))
        torch.save(card.state_dict(), tmp_path / recipe.files[-1])
        return card

    monkeypatch.setattr(timm, "create_model", stored)
    judge = getattr(zoo, CLASSES[name])()
    monkeypatch.setattr(timm, "create_model", create)
    prepare = judge.get_transform()
    tiles = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in IMAGES]
    expected = judge.encode_image(torch.stack([prepare(tile) for tile in tiles]))
    assert _cosine(load(f"{name}@{tmp_path}")(IMAGES), expected) > 0.9995
