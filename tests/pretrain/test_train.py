"""A run that was stopped ends in the same weights; what goes wrong is said, and nothing is lost."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch

from stainssl.encoders import new_backbone, vector_length
from stainssl.pretrain import checkpoints, train, watch
from stainssl.pretrain.checkpoints import CHECKPOINT, usable_checkpoint
from stainssl.pretrain.data import TrainTiles
from stainssl.pretrain.methods import Recipe, SimClr
from stainssl.pretrain.objectives import OBJECTIVES
from stainssl.pretrain.train import (
    Learner,
    Preprocessing,
    Settings,
    Supervision,
    fingerprint,
    fit,
    learning_rate,
)
from stainssl.status import StainsslError
from stainssl.stores.pixels import open_pixels
from tests.pretrain.world import BACKBONE, images, write_part

SETTINGS = Settings(
    steps=7, lr=1e-3, weight_decay=1e-4, checkpoint_seconds=1e9, checkpoint_steps=2
)  # three epochs of three steps, the last cut short


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiles") / "part.zarr"
    write_part(path, {"a0": images(13, "a", 0), "b0": images(12, "b", 1)})
    return TrainTiles([open_pixels(path)])


class Stopped(Exception):
    """Stands for a job that is killed."""


class Interrupted(SimClr):
    """SimCLR that is killed at a step."""

    stop_at = -1

    def views(self, batch, step):
        if step == self.stop_at:
            raise Stopped
        return super().views(batch, step)


def _module(settings=SETTINGS, stop_at=-1, loss="nt-xent", queue=0, supervision=None):
    torch.manual_seed(0)
    backbone, _ = new_backbone(BACKBONE, 32)
    method = Interrupted(Recipe(32, "weak", 0), None)
    method.stop_at = stop_at
    even = Preprocessing((0.5,) * 3, (0.5,) * 3)
    objective = OBJECTIVES[loss](backbone, vector_length(backbone, 32), 0.2, queue)
    return Learner(backbone, objective, method, even, settings, supervision)


def _fit(module, tiles, folder, settings=SETTINGS, mark="m", seed=0):
    return fit(module, tiles, settings, batch_size=8, seed=seed, checkpoints=folder, mark=mark)


def _same(first, second):
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture(scope="module")
def undisturbed(tiles, tmp_path_factory):
    module = _module()
    return module, _fit(module, tiles, tmp_path_factory.mktemp("undisturbed"))


def test_figures_of_every_epoch(undisturbed):
    rows = undisturbed[1]
    assert list(rows.columns) == list(watch.METRICS)
    assert rows["epoch"].tolist() == [0, 1, 2, 3]
    assert rows["step"].tolist() == [0, 3, 6, 7]
    found = rows.drop(columns=["knn_site", "knn_label"])
    assert np.isnan(rows["loss"][0]) and np.isfinite(found.iloc[1:].to_numpy()).all()
    assert rows["effective_rank"].between(1, 25).all()


def test_a_seed_gives_the_same_weights_and_another_seed_others(undisturbed, tiles, tmp_path):
    again, other = _module(), _module()
    _fit(again, tiles, tmp_path / "again")
    _fit(other, tiles, tmp_path / "other", seed=1)
    assert _same(undisturbed[0], again)
    assert not _same(undisturbed[0], other)


@pytest.mark.parametrize("stop_at", [3, 4, 6])  # an epoch's start, its middle, the last epoch
def test_a_killed_run_ends_in_the_weights_of_an_undisturbed_one(
    undisturbed, tiles, tmp_path, stop_at, caplog
):
    with pytest.raises(Stopped):
        _fit(_module(stop_at=stop_at), tiles, tmp_path)
    resumed = _module()
    with caplog.at_level(logging.INFO):
        rows = _fit(resumed, tiles, tmp_path)
    assert f"going on from step {stop_at // 2 * 2} of 7" in caplog.text
    assert _same(undisturbed[0], resumed)
    same = [name for name in watch.METRICS if name != "images_per_second"]
    np.testing.assert_array_equal(rows[same], undisturbed[1][same])


def test_a_finished_run_is_not_trained_again(undisturbed, tiles, tmp_path):
    _fit(_module(), tiles, tmp_path)
    again = _module(stop_at=0)
    _fit(again, tiles, tmp_path)
    assert _same(undisturbed[0], again)


def test_another_runs_checkpoint_is_not_taken_up(undisturbed, tiles, tmp_path, caplog):
    with pytest.raises(Stopped):
        _fit(_module(stop_at=4), tiles, tmp_path, mark="another")
    module = _module()
    _fit(module, tiles, tmp_path)
    assert "is of another config" in caplog.text
    assert usable_checkpoint(tmp_path / "of-another.ckpt", "another") == 4  # nothing is lost
    assert _same(undisturbed[0], module)


def test_a_broken_checkpoint_is_not_taken_up(tmp_path, caplog):
    (tmp_path / CHECKPOINT).write_bytes(b"half")
    assert usable_checkpoint(tmp_path / CHECKPOINT, "m") is None
    assert "not a whole checkpoint" in caplog.text
    assert usable_checkpoint(tmp_path / "none.ckpt", "m") is None


def test_not_a_number_stops_and_keeps_the_last_good_checkpoint(tiles, tmp_path):
    class Spoiled(Interrupted):
        def views(self, batch, step):
            first, second = super().views(batch, step)
            return first, second * float("nan") if step == 4 else second

    module = _module()
    module._method = Spoiled(Recipe(32, "weak", 0), None)
    with pytest.raises(StainsslError, match=r"not a number at step 5 .*lower `lr`"):
        _fit(module, tiles, tmp_path)
    assert usable_checkpoint(tmp_path / CHECKPOINT, "m") == 4


def test_a_collapse_stops_and_says_what_to_try(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "RANK_TILES", 8)
    monkeypatch.setattr(watch, "effective_rank", lambda features: 1.2)
    with pytest.raises(StainsslError, match=r"collapsed: effective rank 1.20 after epoch 1 .*lr"):
        _fit(_module(), tiles, tmp_path)


def test_a_full_disk_keeps_the_checkpoint_before(tiles, tmp_path, monkeypatch):
    saved = train.lightning.Trainer.save_checkpoint

    def full(self, path, weights_only=None):
        if self.global_step == 4:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        saved(self, path, weights_only=weights_only)

    monkeypatch.setattr(train.lightning.Trainer, "save_checkpoint", full)
    with pytest.raises(StainsslError, match="No space left on device"):
        _fit(_module(), tiles, tmp_path)
    assert usable_checkpoint(tmp_path / CHECKPOINT, "m") == 2
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_told_to_stop_it_writes_a_checkpoint_first(undisturbed, tiles, tmp_path, monkeypatch):
    property_of = property(lambda self: self.global_step == 3)
    monkeypatch.setattr(train.lightning.Trainer, "received_sigterm", property_of)
    with pytest.raises(StainsslError, match=r"Told to stop at step 3 of 7"):
        _fit(_module(), tiles, tmp_path)
    monkeypatch.undo()
    module = _module()
    _fit(module, tiles, tmp_path)
    assert _same(undisturbed[0], module)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert rates[100] == pytest.approx(0)
    assert learning_rate(0, 1) == 1
    assert learning_rate(0, 100, warm_up=0) == 1 == learning_rate(49, 100, warm_up=0.5)


def test_a_fingerprint_tells_settings_apart():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
