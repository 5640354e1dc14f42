"""A short training, alone or in a group of processes: `python -m tests.pretrain.group FOLDER …`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from stainssl.encoders.blocks import last_blocks
from stainssl.encoders.loading import new_backbone, vector_length
from stainssl.pretrain.data import TrainTiles
from stainssl.pretrain.distributed import is_main
from stainssl.pretrain.methods import (
    PRETRAINING_METHODS,
    HedJitter,
    NormalizerState,
    StainTargets,
    ViewSettings,
)
from stainssl.pretrain.objectives import OBJECTIVES
from stainssl.pretrain.tile_metadata import profiles
from stainssl.pretrain.train import Learner, Preprocessing, TrainSettings, fit
from stainssl.pretrain.tuning import DistillationLoss, freeze_all_but
from stainssl.stain.targets import BatchTarget
from stainssl.stores.pixels import open_pixels
from tests.pretrain.world import BACKBONE

TUNED = "tuned"  # NT-Xent from initial weights, of which only the last stage is trained


def train(folder: Path, name: str, loss: str) -> None:
    """Train for four epochs of one step on the tiles in `folder`; metrics go to `folder/name`."""
    store = open_pixels(folder / "part.zarr")
    known = profiles([store], "macenko")
    torch.manual_seed(0)
    backbone, _ = new_backbone(BACKBONE, 32)
    stain = StainTargets(
        [NormalizerState(known, BatchTarget(known.pooled()))], lambda tiles: ["a"] * len(tiles)
    )
    method = PRETRAINING_METHODS["stain-invariant"](
        ViewSettings(32, "strong", 0, stain_jitter=HedJitter(0.2)), stain
    )
    queue = 6 if loss == "nt-xent" else 0
    settings = TrainSettings(steps=4, lr=1e-3, weight_decay=1e-4, checkpoint_steps=2)
    distillation = None
    if loss == TUNED:
        distillation = DistillationLoss(backbone, 2.0)
        freeze_all_but(backbone, last_blocks(backbone, 1))
        settings = replace(settings, freeze_steps=1, lr_backbone=5e-4, layer_decay=0.9)
    kind = OBJECTIVES["nt-xent" if loss == TUNED else loss]
    objective = kind(backbone, vector_length(backbone, 32), 0.2, queue)
    preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3)
    module = Learner(backbone, objective, method, preprocessing, settings, None, distillation)
    rows = fit(
        module, TrainTiles([store]), settings, batch_size=12, seed=0,
        checkpoints=folder / name / loss, mark="m",
    )  # fmt: skip
    if is_main():
        rows.to_csv(folder / name / f"{loss}.csv")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for loss in sys.argv[3:]:
        train(Path(sys.argv[1]), sys.argv[2], loss)
