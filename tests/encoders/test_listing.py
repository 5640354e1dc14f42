"""What is told of encoders that are known by name: where they are, and which file they were."""

from __future__ import annotations

from stainssl import doctor
from stainssl.encoders import listing, slide_recipes
from stainssl.encoders.recipes import RECIPES

CACHED = "/cache/models--MahmoodLab--UNI/snapshots/0123abcd/pytorch_model.bin"


def _only_uni(repository, file):
    return CACHED if (repository, file) == ("MahmoodLab/UNI", "pytorch_model.bin") else None


def test_a_store_tells_the_recipe_and_the_hubs_revision(monkeypatch):
    monkeypatch.setattr(listing, "try_to_load_from_cache", _only_uni)
    told = {"recipe": "uni", "trained_mpp": [0.5]}
    assert listing.described("UNI_v1") == told | {"revision": "0123abcd"}
    assert listing.described("uni@/somewhere/model.safetensors") == told  # a file that was given
    assert listing.described("virchow2") == {"recipe": "virchow2", "trained_mpp": [0.25, 0.5, 1, 2]}
    assert listing.described("resnet18") == listing.described("local-dir:uni") == {}


def test_every_encoder_has_a_line_and_says_where_it_is(monkeypatch):
    monkeypatch.setattr(listing, "try_to_load_from_cache", _only_uni)
    _, *lines = listing.lines()
    assert [line.split()[0] for line in lines] == [*RECIPES, *slide_recipes.RECIPES]
    assert CACHED in next(line for line in lines if line.startswith("uni "))
    chief = next(line for line in lines if line.startswith("chief"))
    assert chief.endswith("- (of ctranspath)")
    assert "uni" in doctor._encoders().split(", ")
    assert "virchow" not in doctor._encoders()
