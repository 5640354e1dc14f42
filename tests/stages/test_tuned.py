"""`pretrain` from given weights, of which only some are trained: frozen layers, norms, adapters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from stainssl.config import parse
from stainssl.encoders.loading import load
from stainssl.encoders.saving import save_local_dir
from stainssl.errors import StainsslError
from stainssl.plan import encoders as plan_encoders
from stainssl.pretrain.train import Learner
from stainssl.stages import pretrain, run_stage
from tests.pretrain.world import cohort


def _given(folder, name="test_vit", seed=5, **args):
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=0, **args)
    save_local_dir(model, folder, backbone=name, input_size=64, mean=(0.7, 0.5, 0.6),
                   std=(0.2, 0.3, 0.25), model_args=args, card={})  # fmt: skip
    return f"local-dir:{folder}"


def _config(folder, name="test_vit", **keys):
    args = {"img_size": 64} if "vit" in name else {}
    source = _given(folder / "given", name, **args)
    return cohort(folder, init=source, backbone=None, epochs=1, **keys)


def _trained(config) -> tuple[Path, Learner]:
    """The model's folder, and the learner at the end of training."""
    learners = []
    fit = pretrain.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pretrain, "fit", lambda module, *a, **k: learners.append(module) or fit(module, *a, **k)
        )
        run_stage("pretrain", config, "simclr")
    return config.paths.model("simclr"), learners[0]


def _weights(path):
    return load_file(path / "model.safetensors")


def _changed_statistics(given: dict, found: dict) -> set[str]:
    return {n for n in given if "running" in n and not torch.equal(given[n], found[n])}


def test_norms_keep_their_statistics_unless_freeze_norms_is_off(tmp_path):
    for freeze, folder in ((True, tmp_path / "kept"), (False, tmp_path / "moving")):
        keys = {} if freeze else {"freeze_norms": False}
        path, _ = _trained(_config(folder, "test_resnet", **keys))
        moved = _changed_statistics(_weights(folder / "given"), _weights(path))
        assert bool(moved) is not freeze


def test_norms_of_random_weights_update_their_statistics(tmp_path):
    path, _ = _trained(cohort(tmp_path, backbone="test_resnet", epochs=1))
    fresh = timm.create_model("test_resnet", num_classes=0).state_dict()
    assert _changed_statistics(fresh, _weights(path)) == {n for n in fresh if "running" in n}


def test_only_the_last_stage_is_trained(tmp_path):
    path, _ = _trained(_config(tmp_path, "test_resnet", tune="last-1", keep=0.1))
    given, found = _weights(tmp_path / "given"), _weights(path)
    changed = {name for name in given if not torch.equal(given[name], found[name])}
    assert changed
    assert {name.partition(".")[0] for name in changed} == {"layer4"}
    assert "| trained of them | last-1, lr 0.001" in (path / "README.md").read_text()


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
@pytest.mark.parametrize("merge", [False, True])
def test_a_loaded_adapter_gives_the_embeddings_of_the_trained_network(tmp_path, name, merge):
    lora = {"rank": 2, "alpha": 64, "merge": merge}
    path, learner = _trained(_config(tmp_path, name, tune="lora", lora=lora, lr=1e-2))
    encoder = load(path)
    views = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, given = (
            learner.backbone.eval()(views),
            load(tmp_path / "given", input_size=32).model(views),
        )
        torch.testing.assert_close(encoder.model(views), expected, atol=1e-5, rtol=1e-4)
        assert (expected - given).norm() > 1e-3 * given.norm()
    assert encoder.input_size == 32
    assert (path / "model.safetensors").is_file() == merge
    if merge:  # loadable by timm
        model = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=0).eval()
        with torch.inference_mode():
            torch.testing.assert_close(model(views), encoder.model(views))


def test_an_adapter_with_changed_base_weights_is_refused(tmp_path):
    path, _ = _trained(_config(tmp_path, tune="lora", lora={"rank": 2}))
    _given(tmp_path / "given", seed=6, img_size=64)
    with pytest.raises(StainsslError, match="these are other weights"):
        load(path)


def test_training_starts_from_an_adapter_of_the_config(tmp_path):
    config = _config(tmp_path, tune="lora", lora={"rank": 2}, steps=1)
    given = config.model_dump(mode="json")
    given["encoders"]["next"] = {**given["encoders"]["simclr"], "init": "simclr"}
    config = parse(given)
    run_stage("pretrain", config, "simclr")
    run_stage("pretrain", config, "next")
    assert load(config.paths.model("next")).dim == 64


class Killed(Exception):
    """Stands in for a killed job."""


@pytest.mark.parametrize("tune", ["last-1", "lora"])
def test_a_killed_job_resumes_to_the_same_files(tmp_path, tune, monkeypatch, caplog):
    settings, step = pretrain._settings, Learner.training_step
    monkeypatch.setattr(
        pretrain, "_settings", lambda *a: dataclasses.replace(settings(*a), checkpoint_steps=2)
    )

    def killed(self, batch, batch_idx):
        if self.global_step == 3:
            raise Killed
        return step(self, batch, batch_idx)

    keys = {"tune": tune, "keep": 0.5, "freeze_steps": 1, "layer_decay": 0.8}
    keys |= {"lora": {"rank": 2}} if tune == "lora" else {}
    config = _config(tmp_path, **keys)
    path = _trained(config)[0]
    whole = {p.name: p.read_bytes() for p in path.iterdir()}
    config.paths.checkpoints("simclr").joinpath("last.ckpt").unlink()
    monkeypatch.setattr(Learner, "training_step", killed)
    with pytest.raises(Killed):
        run_stage("pretrain", config, "simclr")
    monkeypatch.setattr(Learner, "training_step", step)
    with caplog.at_level("INFO"):
        run_stage("pretrain", config, "simclr")
    assert "resuming from step 2 of 5" in caplog.text
    assert {p.name: p.read_bytes() for p in path.iterdir()} == whole


def test_all_steps_frozen_is_an_error(tmp_path):
    with pytest.raises(StainsslError, match=r"freeze_steps \(5\) cover all 5 steps"):
        run_stage("pretrain", _config(tmp_path, freeze_steps=5), "simclr")


def _encoder(**keys):
    base = {"method": "simclr", "train": {"cohorts": ["d"]}}
    return parse({"cohorts": {"d": {"demo": {}}}, "encoders": {"x": {**base, **keys}}})


@pytest.mark.parametrize(
    "key",
    [{"tune": "last-1"}, {"tune": "lora"}, {"lora": {"rank": 4}}, {"keep": 1.0},
     {"lr_backbone": 1e-5}, {"layer_decay": 0.8}, {"freeze_steps": 3}, {"freeze_norms": False}],
    ids=str,
)  # fmt: skip
def test_keys_without_effect_on_random_weights_are_refused(key):
    with pytest.raises(StainsslError, match=f"{next(iter(key))}: only for training from given"):
        _encoder(**key)
    _encoder(**key, init="resnet18")


@pytest.mark.parametrize("value", ["last", "last-0", "last-x", "Lora", "half"])
def test_an_unknown_value_of_tune_is_an_error(value):
    with pytest.raises(StainsslError, match="write full, lora, or last-N with the number of block"):
        _encoder(init="resnet18", tune=value)


def test_freeze_steps_that_cover_all_steps_are_refused_by_the_config():
    with pytest.raises(StainsslError, match=r"freeze_steps \(3\) cover all 3 steps"):
        _encoder(init="resnet18", freeze_steps=3, steps=3)


def test_lora_keys_change_the_job_only_with_tune_lora():
    plain, other = (_encoder(init="resnet18", lora={"rank": rank}) for rank in (4, 8))
    used = [plan_encoders.without_unused_keys(config.encoders["x"]) for config in (plain, other)]
    assert used[0] == used[1]
    plain, other = (_encoder(init="resnet18", tune="lora", lora={"rank": r}) for r in (4, 8))
    used = [plan_encoders.without_unused_keys(config.encoders["x"]) for config in (plain, other)]
    assert used[0] != used[1]


@pytest.mark.parametrize(
    "key",
    [{"tune": "last-1"}, {"tune": "lora"}, {"keep": 1.0}, {"lr_backbone": 1e-5},
     {"layer_decay": 0.8}, {"freeze_steps": 3}, {"freeze_norms": False}],
    ids=str,
)  # fmt: skip
def test_each_key_changes_the_job(key):
    plain, other = _encoder(init="resnet18"), _encoder(init="resnet18", **key)
    used = [plan_encoders.without_unused_keys(config.encoders["x"]) for config in (plain, other)]
    assert used[0] != used[1]
