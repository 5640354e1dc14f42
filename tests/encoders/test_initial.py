"""Training from given weights: it starts from them and uses their preprocessing."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from stainssl.config import dump, parse
from stainssl.encoders.initial import backbone_of, initial_backbone
from stainssl.encoders.loading import load
from stainssl.encoders.saving import save_local_dir
from stainssl.errors import StainsslError
from stainssl.stages import pretrain, run_stage
from tests.pretrain.world import cohort

MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.3, 0.25)


def _network(name="test_resnet", seed=5):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=0)


def _file(folder, name="test_resnet"):
    model = _network(name)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "w.safetensors")
    return model, f"{name}@{folder / 'w.safetensors'}"


def _folder(folder, name="test_resnet", size=32, **args):
    torch.manual_seed(5)
    model = timm.create_model(name, num_classes=0, **args)
    save_local_dir(model, folder / "model", backbone=name, input_size=size, mean=MEAN, std=STD,
                   model_args=args, card={})  # fmt: skip
    return model, f"local-dir:{folder / 'model'}"


def _assert_same_weights(found, expected):
    for (name, one), (_, two) in zip(
        found.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(one, two, msg=name)


@pytest.mark.parametrize("make", [_file, _folder])
def test_initial_weights_are_those_of_the_source(tmp_path, make):
    expected, source = make(tmp_path)
    found = initial_backbone(source, 32)
    _assert_same_weights(found.model, expected)
    assert found.name == "test_resnet"


def test_mean_and_std_are_those_of_the_model(tmp_path):
    found = initial_backbone(_folder(tmp_path)[1], 32)
    assert (found.mean, found.std) == (MEAN, STD)
    own = timm.get_pretrained_cfg("test_vit.r160_in1k")
    of_file = initial_backbone(_file(tmp_path, "test_vit.r160_in1k")[1], 160)
    assert (of_file.mean, of_file.std) == (own.mean, own.std)


def test_position_embeddings_are_resampled_as_by_timm(tmp_path):
    model, source = _folder(tmp_path, "test_vit", size=64, img_size=64)
    found = initial_backbone(source, 96)
    assert found.model_args == {"img_size": 96}
    # timm resamples when it loads the file into a network of the other size.
    file = {"file": str(tmp_path / "model" / "model.safetensors"), "num_classes": 0}
    expected = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=file,
                                 num_classes=0, img_size=96)  # fmt: skip
    _assert_same_weights(found.model, expected)
    torch.testing.assert_close(found.model.norm.weight, model.norm.weight)


def test_another_architecture_than_in_the_config_is_an_error(tmp_path):
    _, source = _file(tmp_path)
    with pytest.raises(StainsslError, match=r"is a test_resnet, but `backbone` is resnet50"):
        initial_backbone(source, 32, "resnet50")


def test_a_size_that_the_network_cannot_take_is_an_error(tmp_path):
    _, source = _folder(tmp_path, "test_vit", size=64, img_size=64)
    with pytest.raises(StainsslError, match=r"cannot be built for 40 px .*`input_size: 64`"):
        initial_backbone(source, 40)  # not a multiple of the patch size


def _train(folder, source, method, **keys):
    config = cohort(folder, init=source, backbone=None, **keys)
    name = {"stain-invariant": "si", "simclr": "simclr"}[method]
    if method == "stain-invariant":
        run_stage("target", config, name)
    run_stage("pretrain", config, name)
    return config, config.paths.model(name)


@pytest.mark.parametrize("method", ["stain-invariant", "simclr"])
def test_training_without_change_keeps_the_given_weights_and_mean_and_std(tmp_path, method):
    expected, source = _folder(tmp_path)
    _, path = _train(tmp_path / "c", source, method, steps=1, lr=1e-12, weight_decay=0)
    made = load(path)
    torch.testing.assert_close(made.mean.flatten(), torch.tensor(MEAN))
    torch.testing.assert_close(made.std.flatten(), torch.tensor(STD))
    for name, value in expected.named_parameters():
        torch.testing.assert_close(made.model.get_parameter(name), value, atol=1e-6, rtol=1e-5)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert made(images).shape == (3, made.dim)


def test_training_uses_the_mean_and_std_of_the_source(tmp_path, monkeypatch):
    seen = []
    preprocessing = pretrain.Preprocessing
    monkeypatch.setattr(pretrain, "Preprocessing", lambda *a: seen.append(a) or preprocessing(*a))
    _train(tmp_path / "c", _folder(tmp_path)[1], "simclr", steps=1)
    assert seen == [(MEAN, STD)]


def test_changed_weights_at_the_same_path_do_not_resume_the_checkpoint(tmp_path, caplog):
    _, source = _file(tmp_path)
    _train(tmp_path / "c", source, "simclr", steps=1)
    save_file({k: v.contiguous() for k, v in _network(seed=6).state_dict().items()},
              tmp_path / "w.safetensors")  # fmt: skip
    _train(tmp_path / "c", source, "simclr", steps=1)
    assert "is from another config" in caplog.text


def _chained(tmp_path, **second):
    config = cohort(tmp_path, steps=1)
    given = config.model_dump(mode="json")
    given["encoders"]["next"] = {**given["encoders"]["si"], "backbone": None, "init": "simclr",
                                 "method": "simclr", **second}  # fmt: skip
    return parse(given)


def test_starting_from_an_encoder_of_the_config_includes_the_patients_it_has_seen(tmp_path):
    config = _chained(tmp_path)
    paths = config.paths
    run_stage("pretrain", config, "simclr")
    earlier = pd.read_csv(paths.seen("simclr"))
    earlier.loc[len(earlier)] = ["p9", "elsewhere", 2, 7]
    earlier.to_csv(paths.seen("simclr"), index=False)
    run_stage("pretrain", config, "next")
    seen = pd.read_csv(paths.seen("next"))
    assert seen["patient_id"].tolist() == ["p1", "p2", "p3", "p9"]
    assert seen["tiles"].tolist() == [23, 10, 9, 7]
    card = (paths.model("next") / "README.md").read_text(encoding="utf-8")
    assert "4: p1, p2, p3, p9" in card
    assert "| initial weights | simclr |" in card


def test_a_run_starts_from_the_run_with_the_same_seed(tmp_path):
    config = _chained(tmp_path, seeds=[0, 3])
    several = config.model_dump(mode="json")
    several["encoders"]["simclr"]["seeds"] = [3, 4]
    config = parse(several)
    assert config.initial_run(config.run("next.3")).name == "simclr.3"
    assert config.initial_run(config.run("next.0")).name == "simclr.3"
    assert config.initial_run(config.run("simclr.3")) is None


def test_cycles_of_init_are_refused(tmp_path):
    config = _chained(tmp_path).model_dump(mode="json")
    config["encoders"]["test_resnet"] = {**config["encoders"]["next"], "init": "test_resnet"}
    found = parse(config)
    assert found.initial_run(found.run("test_resnet")) is None
    config["encoders"]["simclr"] |= {"init": "next"}
    with pytest.raises(StainsslError, match="next starts from simclr starts from next: a cycle"):
        parse(config)


@pytest.mark.parametrize(("keys", "message"), [
    ({"method": "random"}, "needs a 'method' that trains"),
    ({"method": None, "weights": "resnet18", "train": None}, "needs a 'method' that trains"),
])  # fmt: skip
def test_init_without_training_is_an_error(tmp_path, keys, message):
    with pytest.raises(StainsslError, match=re.escape(message)):
        _chained(tmp_path, **keys)


def test_init_from_imported_features_is_an_error(tmp_path):
    config = _chained(tmp_path).model_dump(mode="json")
    config["encoders"]["files"] = {"features": "trident:/nowhere"}
    config["encoders"]["next"]["init"] = "files"
    with pytest.raises(StainsslError, match="imported features, without a network"):
        parse(config)


def test_without_init_the_weights_are_random_from_the_seed(tmp_path):
    config = parse(_dumped(cohort(tmp_path)))
    torch.manual_seed(0)
    first = backbone_of(None, config.encoders["simclr"].architecture, None, 32)
    torch.manual_seed(0)
    _assert_same_weights(first.model, timm.create_model("test_resnet", num_classes=0))


def _dumped(config):
    import yaml

    return yaml.safe_load(dump(config))
