"""Information on encoders known by name: recipe, license, revision and location of the weights."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from stainssl import doctor
from stainssl.encoders import hub, listing, slide_recipes
from stainssl.encoders.recipes import RECIPES
from stainssl.encoders.weights import written
from tests.encoders.fake_hub import COMMITS, cache, put
from tests.encoders.test_recipes import CARDS, TRANSFORMERS

FILE = "pytorch_model.bin"


@pytest.fixture
def uni_file(tmp_path, monkeypatch):
    return put(cache(tmp_path, monkeypatch), "MahmoodLab/UNI", FILE, b"", COMMITS[0])


def test_described_has_recipe_license_and_revision(uni_file):
    expected = {"recipe": "uni", "trained_mpp": [0.5], "license": "CC-BY-NC-ND-4.0"}
    assert listing.described("UNI_v1") == expected | {"revision": COMMITS[0]}
    assert listing.described("uni@/somewhere/model.safetensors") == expected  # of a given file
    assert "revision" not in listing.described("virchow2")
    assert listing.described("resnet18") == listing.described("local-dir:uni") == {}


def test_a_hub_model_without_a_recipe_has_its_revision(tmp_path, monkeypatch):
    folder = cache(tmp_path, monkeypatch)
    put(folder, "somebody/model", "model.safetensors", b"", COMMITS[0])
    assert listing.described("hf-hub:somebody/model") == {"revision": COMMITS[0]}
    assert listing.described("hf-hub:somebody/other") == {}


def test_a_recipe_of_the_config_is_described_by_its_weights(tmp_path, monkeypatch):
    put(cache(tmp_path, monkeypatch), "a/b", "w.pth", b"", COMMITS[0])
    own = {"architecture": "test_vit", "mean": [0.5] * 3, "std": [0.5] * 3, "files": ["w.pth"],
           "mpp": [0.25], "license": "ours"}  # fmt: skip
    assert listing.described(written("hf-hub:a/b", own)) == {
        "recipe": "hf-hub:a/b", "trained_mpp": [0.25], "license": "ours", "revision": COMMITS[0],
    }  # fmt: skip


def test_the_list_has_every_encoder_and_the_location_of_its_weights(uni_file):
    _, *lines, below = listing.lines()
    assert "hf auth login" in below
    assert [line.split()[0] for line in lines] == [*RECIPES, *slide_recipes.RECIPES]
    assert str(uni_file) in next(line for line in lines if line.startswith("uni "))
    chief = next(line for line in lines if line.startswith("chief"))
    assert "on request" in chief
    assert chief.endswith("- (of ctranspath)")
    assert "uni" in doctor._encoders().split(", ")
    assert "virchow" not in doctor._encoders()
    assert "HF_HUB_OFFLINE" in doctor._hub()


def test_doctor_reports_whether_there_is_a_token_for_gated_encoders(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "has_token", lambda: False)
    assert "no token (needed for gated models): hf auth login; downloaded to" in doctor._hub()
    monkeypatch.setattr(hub, "has_token", lambda: True)
    assert "token found" in doctor._hub()


def test_the_list_of_validated_recipes_agrees_with_the_tests():
    """The recipes in the documentation's column are exactly the parameters of the tests."""
    assert set(CARDS) | set(TRANSFORMERS) | {"h0-mini", "kaiko-vitl14"} == set(
        listing.COMPARED_WITH[listing.CARD]
    )
    assert {n for names in listing.COMPARED_WITH.values() for n in names} <= set(RECIPES)
    assert "layout" not in {listing.compared_with(name) for name in RECIPES}
    assert listing.compared_with("uni") == "card, LazySlide"


def test_commit_of_a_file_in_a_subfolder_of_the_repository(tmp_path, monkeypatch):
    folder = cache(tmp_path, monkeypatch)
    path = put(folder, "a/b", "models/w.pth", b"", COMMITS[1])
    assert hub.commit_of(path) == COMMITS[1]
    assert hub.commit_of(tmp_path / "snapshots") is None
