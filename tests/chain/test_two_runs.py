"""Two Snakemake runs at once in one folder with different configs."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from stainssl.stores.tiles import read_tiles
from tests.chain.conftest import ENV, Workflow

pytestmark = pytest.mark.chain


def _with(fresh: Workflow, name: str, size: int, results: str = "results") -> Workflow:
    """The same folder with another config, whose tiles have another size."""
    config = yaml.safe_load((fresh.folder / fresh.config).read_text())
    config["tilings"]["default"]["size"] = size
    (fresh.folder / name).write_text(yaml.safe_dump({**config, "results": results}))
    return Workflow(fresh.folder, name)


@contextlib.contextmanager
def _paused(workflow: Workflow, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A started run; Snakemake itself is paused within the block, its jobs are not."""
    process = subprocess.Popen(workflow.command(*arguments), env=ENV)
    while not list((workflow.folder / "results").glob("configs/*.yaml")):
        assert process.poll() is None, "it ended before a job of its own started"
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0


def _sizes(folder: Path) -> list[int]:
    """Tile side in px of each part, from the positions of its tiles."""
    tables = sorted(folder.glob("cohorts/clinic/default/tiles/*.parquet"))
    return [int(np.gcd.reduce(read_tiles(table)["x"].to_numpy())) for table in tables]


def test_two_runs_in_one_folder_do_not_affect_each_other(fresh: Workflow) -> None:
    same, other = _with(fresh, "same.yaml", 32), _with(fresh, "other.yaml", 48, "elsewhere")
    results = fresh.folder / "results"
    with _paused(fresh, "--until", "tile"):
        same.run("--until", "tile", fails=True)  # its files are being written
        assert "LockException" in same.run("--until", "tile", "--rerun-incomplete", fails=True)
        same.run("-n", "--nolock", "--rerun-incomplete")
        other.run("--until", "tile")
        latest = yaml.safe_load((results / "config.yaml").read_text())
        assert latest["tilings"]["default"]["size"] == 64
    assert _sizes(results) == [64, 64, 64]
    assert _sizes(fresh.folder / "elsewhere") == [48, 48, 48]
    same.run("--until", "tile")
    assert _sizes(results) == [32, 32, 32]
