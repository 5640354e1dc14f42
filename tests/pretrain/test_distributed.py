"""Training in several processes: the same steps as in one, and placement."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stainssl.pretrain import distributed
from stainssl.pretrain.distributed import Placement, is_main, placement
from tests.pretrain.group import TUNED, train
from tests.pretrain.world import images, write_part

REPO = Path(__file__).resolve().parents[2]
LOSSES = ("nt-xent", "vicreg", "barlow-twins", "dino", TUNED)


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Metrics of the same run in one process, and in two with gloo."""
    folder = tmp_path_factory.mktemp("group")
    write_part(folder / "part.zarr", {"a0": images(8, "a", 0), "b0": images(7, "b", 1)})
    env = {
        **os.environ,
        "PYTHONPATH": str(REPO),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    group = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*group, "-m", "tests.pretrain.group", str(folder), "two", *LOSSES]
    done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for loss in LOSSES:
        train(folder, "one", loss)
    return {
        name: {loss: pd.read_csv(folder / name / f"{loss}.csv") for loss in LOSSES}
        for name in ("one", "two")
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_have_the_loss_of_one_with_the_joint_batch(losses, loss):
    one, two = (losses[name][loss] for name in ("one", "two"))
    assert one["step"].tolist() == two["step"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=2e-3)
    first = one["loss"][1]
    assert two["loss"][1] == pytest.approx(first, rel=1e-5)  # before the first update
    np.testing.assert_allclose(two["effective_rank"], one["effective_rank"], rtol=2e-2)


def _env(monkeypatch, **variables):
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_NNODES",
                 "RANK", "LOCAL_RANK"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_placement_on_cpus_gpus_and_nodes(monkeypatch):
    _env(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert placement() == Placement(False)
    _env(monkeypatch, LOCAL_WORLD_SIZE="2", WORLD_SIZE="6")
    assert placement() == Placement(False, 2, 3)
    assert placement().processes == 6
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    _env(monkeypatch)
    assert placement() == Placement(True, 4)
    _env(monkeypatch, SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_NNODES="1")
    assert placement() == Placement(True, 4)  # one task starts the other processes itself
    _env(monkeypatch, SLURM_NTASKS="8", SLURM_PROCID="5", SLURM_NNODES="2")
    assert placement() == Placement(True, 4, 2)


def test_only_the_first_process_is_main(monkeypatch):
    _env(monkeypatch)
    assert is_main()
    _env(monkeypatch, LOCAL_RANK="1")
    assert not is_main()
    _env(monkeypatch, RANK="4", LOCAL_RANK="0")
    assert not is_main()
    _env(monkeypatch, SLURM_NTASKS="8", SLURM_PROCID="0")
    assert is_main()


def test_a_single_process_gathers_nothing():
    values = torch.randn(4, 3)
    assert distributed.gathered(values) is values
    norm = nn.BatchNorm1d(3)
    expected = nn.BatchNorm1d(3)(values)
    assert torch.equal(distributed.synchronised(nn.Sequential(norm), gpu=False)(values), expected)


def test_fused_norms_keep_their_activation():
    import timm
    from timm.layers import BatchNormAct2d

    net = timm.create_model("lcnet_050", num_classes=0)
    fused = [m.act for m in net.modules() if isinstance(m, BatchNormAct2d)]
    made = distributed.synchronised(net, gpu=True)
    kept = [m.act for m in made.modules() if type(m).__name__ == "SyncBatchNormAct"]
    assert len(fused) == len(kept) > 0
    assert all(a is b for a, b in zip(fused, kept, strict=True))
