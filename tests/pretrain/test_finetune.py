"""Fine-tuning: batches, early stopping, checkpoints and loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stainssl.errors import StainsslError
from stainssl.pretrain import finetune
from stainssl.pretrain.data import TrainTiles
from stainssl.pretrain.finetune import (
    WHOLE,
    Batches,
    Checkpoint,
    TileClassifier,
    TileSubset,
    TuneSettings,
    TuningState,
    fit,
    predict,
    single_view,
)
from stainssl.pretrain.methods import ViewSettings
from stainssl.stores.pixels import SlidePixels, encode, open_pixels, write_pixels

SIZE = 16
SETTINGS = TuneSettings(epochs=4, patience=2, batch_size=8, lr=1e-2, weight_decay=0.0)


def _store(folder: Path, tiles: int, bad: tuple[int, ...] = ()) -> TrainTiles:
    """Tiles of which every second is dark."""
    rng = np.random.default_rng(0)
    level = np.where(np.arange(tiles) % 2, 80, 180)
    images = (level[:, None, None, None] + rng.integers(-9, 9, (tiles, SIZE, SIZE, 3))).clip(0, 255)
    jpegs = [b"" if i in bad else encode(image.astype(np.uint8)) for i, image in enumerate(images)]
    slide = SlidePixels("s", np.arange(tiles, dtype=np.int32), jpegs)
    write_pixels(folder / "p.zarr", [slide], size_px=SIZE, mpp=0.5, settings={})
    return TrainTiles([open_pixels(folder / "p.zarr")])


class Tiny(nn.Module):
    """(B, 3, S, S) → (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.stem(images)).mean((2, 3))


def _network(trained: tuple[int, ...] = (0, 1), classes: int = 2) -> TileClassifier:
    torch.manual_seed(0)
    return TileClassifier(Tiny(), 4, lambda x: x, lambda x: x, trained, classes)


def _part(tile: Any) -> TileSubset:
    tile = np.asarray(tile, np.int64)
    return TileSubset(tile, tile % 2)


VIEWS = single_view(ViewSettings(size_px=SIZE, color="none", seed=0, geometry=WHOLE))


def _fit(folder: Path, network: TileClassifier, tiles: TrainTiles, **keys: Any) -> TuningState:
    options: dict[str, Any] = {"val": _part(range(24, 32)), "settings": SETTINGS, "views": VIEWS}
    options |= {"train": _part(range(24)), "seed": 3}
    options |= {"checkpoint": Checkpoint(folder / "last.safetensors", "mark"), **keys}
    return fit(network, tiles, options.pop("train"), options.pop("val"), options.pop("settings"),
               options.pop("views"), **options)  # fmt: skip


def test_an_epoch_has_each_training_tile_once_and_no_other(tmp_path: Path) -> None:
    batches = Batches(_store(tmp_path, 200), _part(range(0, 150, 3)), 10, 0)
    assert batches.per_epoch == 5
    first, second = (
        np.concatenate([batch.tile for batch in batches.after(start, start + 5)])
        for start in (0, 5)
    )
    assert sorted(first) == sorted(second) == list(range(0, 150, 3))
    assert first.tolist() != second.tolist()
    alone = next(iter(batches.after(7, 8)))
    assert alone.tile.tolist() == second[20:30].tolist()


def test_a_single_training_tile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StainsslError, match=r"1 training tile\(s\) have a known label"):
        Batches(_store(tmp_path, 4), _part([2]), 8, 0)


def test_training_stops_early_with_the_weights_of_the_lowest_validation_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.9, 0.5, 0.7, 0.6, 0.1])
    monkeypatch.setattr(finetune, "log_loss", lambda *a, **k: next(losses))
    network, kept = _network(), []
    validate = finetune._validate

    def recorded(network: TileClassifier, *args: Any) -> None:
        kept.append({n: v.clone() for n, v in network.state_dict().items()})
        validate(network, *args)

    monkeypatch.setattr(finetune, "_validate", recorded)
    settings = TuneSettings(epochs=9, patience=2, batch_size=8, lr=1e-2, weight_decay=0.0)
    progress = _fit(tmp_path, network, _store(tmp_path, 40), settings=settings)
    assert progress.losses == [0.9, 0.5, 0.7, 0.6]
    assert progress.best_epoch == 1
    for name, value in network.state_dict().items():
        assert torch.equal(value, kept[1][name])


def test_without_validation_tiles_all_epochs_run(tmp_path: Path) -> None:
    progress = _fit(tmp_path, _network(), _store(tmp_path, 40), val=_part([]))
    assert (progress.step, progress.losses) == (4 * 3, [])


def test_a_network_learns_two_classes(tmp_path: Path) -> None:
    tiles, network = _store(tmp_path, 40), _network()
    settings = TuneSettings(epochs=20, patience=20, batch_size=8, lr=3e-2, weight_decay=0.0)
    _fit(tmp_path, network, tiles, settings=settings)
    p, good = predict(network, tiles, np.arange(32, 40), 3)
    assert good.all()
    assert p.argmax(1).tolist() == [i % 2 for i in range(32, 40)]
    np.testing.assert_allclose(p.sum(1), 1)


def test_a_class_absent_from_training_has_probability_zero(tmp_path: Path) -> None:
    p, _ = predict(_network((0, 2), 3), _store(tmp_path, 6), np.arange(6), 4)
    assert (p[:, 1] == 0).all()
    np.testing.assert_allclose(p.sum(1), 1)


def test_tiles_that_cannot_be_decoded_are_left_out(tmp_path: Path) -> None:
    tiles, network = _store(tmp_path, 40, bad=(3, 25, 33, 34, 35)), _network()
    assert _fit(tmp_path, network, tiles).step == 12
    p, good = predict(network, tiles, np.arange(33, 40), 3)
    assert good.tolist() == [False, False, False, True, True, True, True]
    assert len(p) == 4


def test_a_checkpoint_of_another_training_or_an_incomplete_one_is_ignored(tmp_path: Path) -> None:
    tiles, path = _store(tmp_path, 40), tmp_path / "last.safetensors"
    whole = _network()
    _fit(tmp_path, whole, tiles, checkpoint=Checkpoint(path, "other"))
    for damage in (path.read_bytes(), path.read_bytes()[:99]):
        path.write_bytes(damage)
        found = _network()
        _fit(tmp_path, found, tiles)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, found.state_dict()[name])


def test_the_loss_is_weighted_cross_entropy_and_a_divergence_of_the_second_view() -> None:
    network, rng = _network().eval(), torch.Generator().manual_seed(0)
    tile = np.arange(8)
    train = TileSubset(tile, np.array([0, 1, 1, 1, 0, 1, 1, 1]))
    settings = TuneSettings(1, 1, 8, 1e-2, 0.0, "balanced", consistency=0.7)
    first, second = (torch.rand(8, 3, SIZE, SIZE, generator=rng) for _ in range(2))
    found = finetune._Loss(network, train, settings, 8)((first, second), tile)
    p, q = network(first).softmax(1), network(second).softmax(1)
    weight = torch.tensor([8 / (2 * 2), 8 / (2 * 6)])
    plain = F.cross_entropy(network(first), torch.from_numpy(train.y), weight)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(found, plain + 0.7 * divergence)
    alone = finetune._Loss(network, train, settings, 8)((first,), tile)
    torch.testing.assert_close(alone, plain)


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    network = _network()
    with torch.no_grad():
        network.head.weight.fill_(float("nan"))
    with pytest.raises(StainsslError, match=r"not finite at step 0: use a lower fine_tune\.lr"):
        _fit(tmp_path, network, _store(tmp_path, 40))


def test_statistics_of_frozen_norms_do_not_change() -> None:
    network = _network()
    network.backbone.norm.requires_grad_(False)
    frozen = TileClassifier(network.backbone, 4, lambda x: x, lambda x: x, (0, 1), 2)
    before = frozen.backbone.norm.running_mean.clone()
    frozen.train()(torch.rand(4, 3, SIZE, SIZE))
    assert torch.equal(frozen.backbone.norm.running_mean, before)
    assert "backbone.norm.weight" not in frozen.changing()


def test_freeze_norms_keeps_the_statistics_of_norms_and_trains_their_weights(
    tmp_path: Path,
) -> None:
    network = _network()
    norms = TileClassifier(
        network.backbone, 4, lambda x: x, lambda x: x, (0, 1), 2, freeze_norms=True
    )
    before = {name: value.clone() for name, value in norms.backbone.state_dict().items()}
    _fit(tmp_path, norms, _store(tmp_path, 32))
    after = norms.backbone.state_dict()
    assert torch.equal(after["norm.running_mean"], before["norm.running_mean"])
    assert torch.equal(after["norm.running_var"], before["norm.running_var"])
    assert not torch.equal(after["norm.weight"], before["norm.weight"])
