"""Checks of an encoder's network before any job starts."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save, save_file

from stainssl.cohort.encoder_checks import problems, resized
from stainssl.cohort.encoder_warnings import warnings
from stainssl.config import parse
from stainssl.encoders import adapters, hub, recipes
from stainssl.encoders.loading import with_classes
from stainssl.encoders.saving import save_local_dir
from tests.encoders.fake_hub import COMMITS, cache, put
from tests.encoders.test_recipes import _tiny


def _config(tiling=None, **encoder):
    return parse({
        "cohorts": {"d": {"demo": {}}},
        "tilings": {"default": tiling or {}},
        "encoders": {"e": encoder},
    })  # fmt: skip


def _problems(**encoder):
    return list(problems(_config(**encoder)))


@pytest.fixture(autouse=True)
def has_a_token(monkeypatch):
    monkeypatch.setattr(hub, "has_token", lambda: True)


TRAIN = {"method": "simclr", "train": {"cohorts": ["d"]}}


@pytest.mark.parametrize(("encoder", "message"), [
    ({**TRAIN, "backbone": "resnot50"}, "'resnot50' is not a timm name; did you mean"),
    ({**TRAIN, "backbone": "vit_tiny_patch16_224", "input_size": 100}, "patches of 16 px"),
    ({"method": "random", "backbone": "nothing"}, "is not a timm name"),
    ({"weights": "vircow2"}, "did you mean 'virchow2'"),
    ({"weights": "chief"}, "chief is a slide encoder: name its tile encoder"),
    ({"weights": "TITAN"}, "titan needs code from the hub, which stainssl does not run"),
    ({"weights": "hf-hub:UNI"}, "hf-hub:OWNER/NAME"),
    ({"weights": "local-dir:/nowhere"}, "not a folder with config.json"),
    ({"weights": "resnet18@/nowhere.pth"}, "/nowhere.pth: no such weights file"),
    ({"weights": "uni@/nowhere"}, "uni@/nowhere: no model.safetensors nor pytorch_model.bin there"),
    ({**TRAIN, "init": "resnet81"}, "e.init: 'resnet81' is not in"),
    ({**TRAIN, "backbone": "resnet18.a9"}, "no weights 'resnet18.a9'; weights of that network: "),
    ({"weights": "resnet18.a9_in1k"}, "no weights 'resnet18.a9_in1k'; weights of that network: "),
    ({"weights": "vit_giant_patch14_224"}, "weights of that network: none"),
    ({"weights": "vit_tiny_patch16_224", "input_size": 100}, "patches of 16 px"),
    ({**TRAIN, "init": "vit_tiny_patch16_224", "input_size": 100}, "patches of 16 px"),
    ({**TRAIN, "init": "virchow2", "tune": "lora"}, "256 px is not a multiple of patches of 14 px"),
    ({"weights": "cait_xxs24_224", "input_size": 100}, "e.input_size: "),
    ({**TRAIN, "init": "resnet18", "backbone": "resnet50"}, "e.backbone: resnet18 is a resnet18"),
    ({**TRAIN, "init": "virchow2", "input_size": 224}, "can be used for embedding, but be"),
])  # fmt: skip
def test_weights_that_cannot_be_loaded_are_reported(encoder, message):
    found = _problems(**encoder)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize("encoder", [
    {**TRAIN, "backbone": "vit_tiny_patch16_224", "input_size": 224}, {**TRAIN, "init": "uni"},
    {**TRAIN, "backbone": "convnext_nano"}, {"weights": "resnet18.a1_in1k"},
    {"weights": "virchow2"}, {"weights": "vit_tiny_patch16_224", "input_size": 96},
    {**TRAIN, "init": "resnet18.a1_in1k", "backbone": "resnet18"},
    {**TRAIN, "backbone": "resnet18.a1_in1k"},
    {"weights": "hf-hub:somebody/model"}, {"features": "trident:/there"}, {"method": "random"},
])  # fmt: skip
def test_valid_sources_have_no_problem(encoder):
    assert _problems(**encoder) == []


def test_tensor_headers_are_compared_with_the_network(tmp_path):
    save_file(
        timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "w.safetensors"
    )
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        assert _problems(weights=f"test_resnet@{tmp_path / file}") == []
        [found] = _problems(weights=f"test_vit@{tmp_path / file}")
        assert "not those of test_vit" in found
        assert "unexpected" in found
        [found] = _problems(**TRAIN, init=f"test_vit@{tmp_path / file}")
        assert "e.init" in found


def test_an_incomplete_download_is_reported(tmp_path):
    model = timm.create_model("test_resnet", num_classes=0)
    save_local_dir(model, tmp_path / "m", backbone="test_resnet", input_size=32, mean=(0.5,) * 3,
                   std=(0.5,) * 3, model_args={}, card={})  # fmt: skip
    assert _problems(weights=f"local-dir:{tmp_path / 'm'}") == []
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "not a complete weights file" in _problems(weights=f"local-dir:{tmp_path / 'm'}")[0]
    weights.unlink()
    assert "is the download complete" in _problems(weights=f"local-dir:{tmp_path / 'm'}")[0]


def test_weights_in_the_cache_of_the_hub_are_checked(tmp_path, monkeypatch):
    recipe = _tiny(monkeypatch, "virchow2")
    args = {"img_size": 224, "num_classes": 0, **with_classes(recipe.arguments)}
    weights = timm.create_model(recipe.architecture, **args).state_dict()
    folder = cache(tmp_path, monkeypatch)
    file = put(folder, recipe.repository, "model.safetensors", save(weights), COMMITS[0])
    assert _problems(weights="virchow2") == []
    file.write_bytes(save({k: v for k, v in weights.items() if k != "reg_token"}))
    assert "1 are missing: reg_token" in _problems(weights="virchow2")[0]
    file.write_bytes(save(weights)[:1000])
    assert "not a complete weights file" in _problems(weights="virchow2")[0]


def test_an_adapter_and_its_base_are_checked(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"x": torch.zeros(1)}, folder / adapters.WEIGHTS)
    assert "no base.json naming" in _problems(weights=f"local-dir:{folder}")[0]
    adapters.write_base(folder, adapters.Base("resnet18", "0"))
    assert _problems(weights=f"local-dir:{folder}") == []
    adapters.write_base(folder, adapters.Base(f"local-dir:{tmp_path / 'gone'}", "0"))
    [found] = _problems(weights=f"local-dir:{folder}")
    assert "has an adapter to local-dir:" in found
    assert "not a folder with config.json" in found


def test_adapters_of_networks_that_timm_cannot_save_need_no_merge():
    lora = {**TRAIN, "init": "virchow2", "input_size": 224, "tune": "lora"}
    assert _problems(**lora) == []
    assert "(tune: lora)" in _problems(**lora, lora={"merge": True})[0]
    config = _config(**lora).model_dump(mode="json")
    config["encoders"]["next"] = {**TRAIN, "init": "e", "input_size": 224}
    [found] = problems(parse(config))
    assert found.startswith("encoders.next.init: virchow2 can be used for embedding")


def test_the_file_of_a_stain_profile_is_checked(tmp_path):
    (tmp_path / "p.json").write_text("{}")
    [found] = _problems(weights="resnet18", preprocess=str(tmp_path / "p.json"))
    assert "e.preprocess: " in found
    assert "has no stain profile" in found
    assert _problems(weights="resnet18", preprocess="reference") == []


@pytest.mark.parametrize("init", ["resnet18", "kaiko-vits16", "tf_efficientnet_lite0"])
def test_more_blocks_than_the_network_has_are_reported(init):
    assert _problems(**TRAIN, init=init, tune="last-4") == []
    [found] = _problems(**TRAIN, init=init, tune="last-13")
    assert "e.tune: last-13: a" in found


def test_more_blocks_than_the_network_has_are_reported_for_fine_tuning():
    def problems_of(tune):
        config = _config(weights="resnet18").model_dump(mode="json")
        task = {"level": "tile", "label": "x", "cohorts": ["d"], "protocol": "fine-tune"}
        config["tasks"] = {"t": {**task, "fine_tune": {"tune": tune}}}
        config["benchmarks"] = {"b": {"tasks": ["t"], "encoders": ["e"]}}
        return list(problems(parse(config)))

    assert problems_of("last-4") == problems_of("full") == problems_of("lora") == []
    [found] = problems_of("last-13")
    assert found.startswith("tasks.t.fine_tune.tune, of encoders.e: last-13: a ResNet has 4 blocks")


def test_files_of_a_recipe_are_compared_with_its_network(monkeypatch, tmp_path):
    recipe = _tiny(monkeypatch, "virchow2")
    args = {"img_size": 224, "num_classes": 0, **with_classes(recipe.arguments)}
    model = timm.create_model(recipe.architecture, **args)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert _problems(weights=f"virchow2@{tmp_path}") == []
    _tiny(monkeypatch, "virchow")
    [found] = _problems(weights=f"virchow@{tmp_path}")
    assert "1 are unexpected: reg_token" in found


def test_tensor_names_of_transformers_are_recognised(monkeypatch, tmp_path):
    transformers = pytest.importorskip("transformers")
    _tiny(monkeypatch, "phikon")
    config = transformers.ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
                                    intermediate_size=192)  # fmt: skip
    transformers.ViTModel(config).save_pretrained(tmp_path)
    assert _problems(weights=f"phikon@{tmp_path}") == []


def test_tilings_unlike_the_training_give_a_warning():
    uni = {"weights": "uni"}
    assert list(warnings(_config({"mpp": 0.5, "size": 256}, **uni))) == []
    assert list(warnings(_config({"mpp": 0.49, "size": 224}, **uni))) == []
    [found] = warnings(_config({"mpp": 0.25, "size": 224}, **uni))
    assert "uni was trained at 0.5 µm/px, and tiling 'default' has 0.25" in found
    assert list(warnings(_config({"mpp": 0.25, "size": 224}, weights="virchow2"))) == []
    [found] = warnings(_config({"mpp": 0.5, "size": 512}, **uni))
    assert "tiles of 512 px are resized to 224 px" in found


def test_every_recipe_has_a_source_and_a_license():
    for name, recipe in recipes.RECIPES.items():
        is_somewhere = recipe.package or recipe.repository.count("/") == 1
        assert is_somewhere, name
        assert recipe.license, name
        assert json.dumps([*recipe.normalization, recipe.mpp])


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=0), tmp_path / "whole.pth")
    [found] = _problems(weights=f"test_resnet@{tmp_path / 'whole.pth'}")
    assert "contains code" in found
    assert "only the network's state_dict()" in found


def _warnings(tmp_path, **encoders):
    return list(warnings(parse({"cohorts": {"d": {"demo": {}}}, "encoders": encoders})))


def test_two_encoders_with_the_same_weights_give_a_warning(tmp_path):
    file, copy = tmp_path / "a.safetensors", tmp_path / "model.safetensors"
    model = timm.create_model("vit_small_patch16_224", num_classes=0)
    save_file(model.state_dict(), file)
    copy.write_bytes(file.read_bytes())
    [found] = _warnings(
        tmp_path, a={"weights": f"kaiko-vits16@{file}"}, b={"weights": f"kaiko_vits16@{tmp_path}"}
    )
    assert "encoders.a and encoders.b have the same weights and settings" in found
    [found] = _warnings(
        tmp_path, a={"weights": f"kaiko-vits16@{file}"}, b={"weights": f"lunit-vits16@{copy}"}
    )
    assert "read the same file as kaiko-vits16 and as lunit-vits16" in found
    both = {"a": f"conch@{file}", "b": f"conch-madeleine@{file}"}  # one publication, two sizes
    assert not any(
        "same" in warning
        for warning in _warnings(tmp_path, **{k: {"weights": w} for k, w in both.items()})
    )
    [found] = _warnings(tmp_path, a={"weights": "uni"}, b={"weights": "UNI_v1"})
    assert "the same weights" in found
    normalized = {"weights": "uni", "preprocess": "reference"}
    assert not _warnings(tmp_path, a={"weights": "uni"}, b=normalized, c={"weights": "uni2-h"})


DINOV2 = "vit_small_patch14_dinov2"


def test_enlarged_tiles_give_a_warning_for_networks_of_timm():
    tiling = {"mpp": 0.5, "size": 256}
    [found] = resized(_config(tiling, weights=f"{DINOV2}.lvd142m"))
    assert "tiles of 256 px of tiling 'default' are resized to 518 px, the input size" in found
    assert "set input_size" in found
    for encoder in (
        {"weights": DINOV2, "input_size": 224}, {"weights": "resnet50"}, {"weights": "uni"},
        {**TRAIN, "init": DINOV2}, {"weights": "hf-hub:a/b"},
    ):  # fmt: skip
        assert list(resized(_config(tiling, **encoder))) == []


def test_a_transformer_with_another_image_size_is_refused_with_a_remedy(tmp_path):
    args = {"num_classes": 0, "depth": 1, "embed_dim": 48, "num_heads": 3}
    model = timm.create_model(DINOV2, img_size=224, init_values=1e-5, **args)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    source = f"{DINOV2}@{tmp_path / 'w.safetensors'}"
    [found] = _problems(weights=source)
    assert "are missing" in found  # tensors of the other blocks
    recipe = {"arguments": {k: v for k, v in args.items() if k != "num_classes"},
              "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    assert _problems(weights=source, recipe=recipe) == []
    [found] = _problems(weights=source, recipe={**recipe, "input_px": 518})
    assert "1 have another shape: pos_embed" in found
    assert "give a 'recipe' with its image size (input_px)" in found
