"""Training of pretrained weights: frozen parts, learning rates, resuming, distillation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from stainssl.encoders.blocks import adaptable, last_blocks
from stainssl.encoders.loading import vector_length
from stainssl.pretrain.lora import adapt
from stainssl.pretrain.methods import ViewSettings
from stainssl.pretrain.objectives import OBJECTIVES
from stainssl.pretrain.train import Learner, Preprocessing, TrainSettings, fit
from stainssl.pretrain.tuning import (
    DistillationLoss,
    freeze_all_but,
    frozen_norms,
    parameter_groups,
)
from tests.pretrain.world import Interrupted, Stopped, tiles_of_two_sites

SETTINGS = TrainSettings(
    steps=6, lr=1e-2, weight_decay=1e-2, checkpoint_seconds=1e9, checkpoint_steps=2
)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return tiles_of_two_sites(tmp_path_factory.mktemp("tiles"))


def _network(name="test_resnet"):
    torch.manual_seed(0)
    size = {"img_size": 32} if "vit" in name else {}
    return timm.create_model(name, num_classes=0, **size)


def _module(
    name="test_resnet", settings=SETTINGS, *, tune="full", keep=0.0, loss="nt-xent", stop_at=-1
):
    backbone = _network(name)
    distillation = DistillationLoss(backbone, keep) if keep else None
    if tune == "lora":
        adapt(backbone, adaptable(backbone, 2, 32), 2, 4.0, seed=0)
    elif tune != "full":
        freeze_all_but(backbone, last_blocks(backbone, int(tune)))
    method = Interrupted(ViewSettings(32, "weak", 0), None)
    method.stop_at = stop_at
    torch.manual_seed(1)
    objective = OBJECTIVES[loss](backbone, vector_length(backbone, 32), 0.2, 0)
    preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3)
    return Learner(backbone, objective, method, preprocessing, settings, None, distillation)


def _fit(module, tiles, folder, settings=SETTINGS):
    return fit(module, tiles, settings, batch_size=8, seed=0, checkpoints=folder, mark="m")


def _state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(one, two):
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def _changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("loss", ["nt-xent", "dino"])
def test_frozen_weights_are_bit_identical_and_all_others_are_trained(tiles, tmp_path, loss):
    module = _module(tune="1", loss=loss)
    before = _state(module.backbone)
    _fit(module, tiles, tmp_path)
    changed = _changed(before, module.backbone.state_dict())
    assert {name.partition(".")[0] for name in changed} == {"layer4"}
    assert last_blocks(module.backbone, 1) <= changed  # all of them
    assert any("running_mean" in name for name in changed)
    if loss == "dino":  # frozen norms of the teacher, which is a copy, do not change either
        teacher = module.objective.teacher.state_dict()
        frozen = {n for n in before if "running" in n and not n.startswith("layer4")}
        assert frozen
        assert not frozen & _changed(before, teacher)


def test_only_the_last_blocks_of_a_transformer_are_trained(tiles, tmp_path):
    module = _module("test_vit", tune="2")
    before = _state(module.backbone)
    _fit(module, tiles, tmp_path)
    changed = _changed(before, module.backbone.state_dict())
    assert changed == last_blocks(module.backbone, 2)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_lora_trains_the_adapters_only(tiles, tmp_path, name):
    module = _module(name, tune="lora")
    before = _state(module.backbone)
    _fit(module, tiles, tmp_path)
    changed = _changed(before, module.backbone.state_dict())
    adapters = {n for n in before if ".lora_" in n}
    assert changed
    assert changed <= adapters
    # In timm's ResNets the last norm of a residual branch starts at zero: no gradient passes it.
    assert name == "test_resnet" or changed == adapters


def test_during_freeze_steps_the_head_is_trained_and_the_backbone_is_not(tiles, tmp_path):
    settings = dataclasses.replace(SETTINGS, freeze_steps=4)
    module = _module(settings=settings, stop_at=4)
    before, head = _state(module.backbone), _state(module.objective)
    with pytest.raises(Stopped):
        _fit(module, tiles, tmp_path, settings)
    assert _same(before, module.backbone.state_dict())  # running statistics included
    assert _changed(head, module.objective.state_dict())
    module = _module(settings=settings)
    _fit(module, tiles, tmp_path, settings)
    changed = _changed(before, module.backbone.state_dict())
    assert changed == set(before)
    assert all(norm.training for norm in module.backbone.modules() if isinstance(norm, _BatchNorm))


def test_freeze_norms_keeps_the_statistics_of_norms_and_trains_their_weights(tiles, tmp_path):
    settings = dataclasses.replace(SETTINGS, freeze_norms=True)
    module = _module(settings=settings)
    before = _state(module.backbone)
    _fit(module, tiles, tmp_path, settings)
    changed = _changed(before, module.backbone.state_dict())
    kept = {name for name in before if "running" in name or "num_batches" in name}
    assert kept
    assert changed == set(before) - kept
    assert not any(m.training for m in module.backbone.modules() if isinstance(m, _BatchNorm))


KINDS = {
    "norms": {"name": "test_resnet", "settings": dataclasses.replace(SETTINGS, freeze_norms=True)},
    "last": {"name": "test_resnet", "tune": "1"},
    "lora": {"name": "test_vit", "tune": "lora"},
    "keep": {"name": "test_resnet", "keep": 2.0},
    "rates": {"name": "test_vit", "settings": dataclasses.replace(
        SETTINGS, lr_backbone=1e-3, layer_decay=0.7)},
    "rest": {"name": "test_resnet", "settings": dataclasses.replace(SETTINGS, freeze_steps=3)},
    "all": {"name": "test_resnet", "tune": "2", "keep": 0.5, "loss": "dino",
            "settings": dataclasses.replace(SETTINGS, freeze_steps=3, layer_decay=0.5)},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop_at", [3, 5])  # checkpoints at step 2, during freeze_steps, and 4
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tiles, tmp_path, kind, stop_at
):
    keys = KINDS[kind]
    settings = keys.get("settings", SETTINGS)
    whole = _module(**keys)
    _fit(whole, tiles, tmp_path / "whole", settings)
    with pytest.raises(Stopped):
        _fit(_module(**keys, stop_at=stop_at), tiles, tmp_path / "killed", settings)
    resumed = _module(**keys)
    _fit(resumed, tiles, tmp_path / "killed", settings)
    assert _same(whole.state_dict(), resumed.state_dict())


def test_frozen_norms_are_those_without_trained_parameters():
    model = _network()
    assert frozen_norms(model) == set()
    freeze_all_but(model, last_blocks(model, 1))
    norms = {n for n, module in model.named_modules() if isinstance(module, _BatchNorm)}
    assert frozen_norms(model) == {n for n in norms if not n.startswith("layer4")}
    assert frozen_norms(model, all_of_them=True) == norms


def _rates(model, head, **options):
    options = {"weight_decay": 0.1, "lr_backbone": 0.01, "layer_decay": 1.0} | options
    heads, backbone = parameter_groups(model, [head], **options)
    names = {id(value): name for name, value in model.named_parameters()}
    return heads, {
        names[id(value)]: (group["lr"], group["weight_decay"])
        for group in backbone
        for value in group["params"]
    }


def test_learning_rates_decay_from_layer_to_layer():
    model, head = _network("test_vit"), torch.nn.Linear(4, 4)
    heads, found = _rates(model, head, layer_decay=0.5)
    assert found["norm.weight"] == found["blocks.5.norm1.weight"] == (0.01, 0)
    for block in range(6):
        wanted = (0.01 * 0.5 ** (5 - block), 0.1)
        assert found[f"blocks.{block}.mlp.fc1.weight"] == pytest.approx(wanted)
    assert found["patch_embed.proj.weight"][0] == pytest.approx(0.01 * 0.5**6)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert sum(len(group["params"]) for group in heads) == 2
    assert all("lr" not in group for group in heads)  # that of the optimizer


def test_only_trained_parameters_have_a_learning_rate():
    model, head = _network("test_vit"), torch.nn.Linear(4, 4).requires_grad_(False)
    freeze_all_but(model, last_blocks(model, 1))
    for decay in (1.0, 0.5):
        heads, found = _rates(model, head, layer_decay=decay)
        assert set(found) == last_blocks(model, 1)
        assert heads == []
        assert {rate for rate, _ in found.values()} == {0.01}


def test_the_schedule_of_the_backbone_starts_after_freeze_steps(tiles, tmp_path):
    settings = dataclasses.replace(SETTINGS, freeze_steps=3, lr_backbone=1e-3, warm_up=0.5)
    seen = []

    class Recording(Learner):
        def on_train_batch_start(self, batch, batch_idx):
            rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
            seen.append((rates[0], rates[-1]))

    module = _module(settings=settings)
    module.__class__ = Recording
    rows = _fit(module, tiles, tmp_path, settings)
    head, backbone = np.array(seen).T
    np.testing.assert_allclose(head[:3], [1e-2 / 3, 2e-2 / 3, 1e-2])
    np.testing.assert_allclose(backbone[3:5], [0.5e-3, 1e-3])  # two of the three steps are warm-up
    assert rows["lr"].iloc[-1] <= 1e-2
    assert head[5] < head[4] < head[3] <= 1e-2


def _cosine_gradient(vectors, given):
    """Gradient of the mean of 1 − cos by the quotient rule, in float64."""
    v, g = vectors.double(), given.double()
    length, other = v.norm(dim=1, keepdim=True), g.norm(dim=1, keepdim=True)
    cosine = (v * g).sum(1, keepdim=True) / (length * other)
    return -(g / (length * other) - cosine * v / length**2) / len(v), 1 - cosine.mean()


def test_the_distillation_loss_and_its_gradient_follow_the_formula():
    network = _network("test_vit")
    distillation = DistillationLoss(network, 3.0)
    views = torch.rand(6, 3, 32, 32)
    vectors = torch.randn(6, 64, requires_grad=True)
    loss = distillation(vectors, views)
    loss.backward()
    with torch.no_grad():
        given = network.eval()(views)
    gradient, distance = _cosine_gradient(vectors.detach(), given)
    assert loss.item() == pytest.approx(3 * distance.item(), rel=1e-5)
    torch.testing.assert_close(vectors.grad.double(), 3 * gradient, atol=1e-7, rtol=1e-4)
    assert all(value.grad is None for value in distillation.parameters())


def test_the_initial_network_stays_a_copy_in_evaluation_mode():
    network = _network().train()
    distillation = DistillationLoss(network, 1.0).train()
    views = torch.rand(4, 3, 32, 32)
    before = _state(distillation)
    with torch.no_grad():
        same = network.eval()(views)
        assert distillation(same, views).item() == pytest.approx(0, abs=1e-6)
        network.train()(views)
        next(network.parameters()).add_(1.0)  # the trained network is another copy
    assert _same(before, distillation.state_dict())


def test_distillation_keeps_embeddings_closer_to_the_initial_ones(tiles, tmp_path):
    def distance(keep):
        module = _module("test_vit", keep=keep)
        _fit(module, tiles, tmp_path / str(keep))
        views = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            one, two = (m.eval()(views) for m in (module.backbone, _network("test_vit")))
        return 1 - torch.cosine_similarity(one, two).mean()

    assert distance(100.0) < 0.5 * distance(0.0)
