"""Killed runs, when resumed, end in the table of an uninterrupted run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from stainssl import launch
from tests.chain.conftest import ENV, Workflow

pytestmark = pytest.mark.chain


def _jobs(process: subprocess.Popen[bytes], verb: str) -> list[psutil.Process]:
    """The Python processes of a Snakemake run that execute a verb."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            if child.cmdline()[1:4] == ["-m", "stainssl", verb]:
                found.append(child)
    return found


def _kill_when(process: subprocess.Popen[bytes], verb: str, log: Path, word: str) -> None:
    """Kill the job that executes `verb` by SIGKILL once its log contains `word`."""
    while process.poll() is None:
        if log.exists() and word in log.read_text():
            for job in _jobs(process, verb):
                os.kill(job.pid, signal.SIGKILL)
                return
        time.sleep(0.05)
    raise AssertionError(f"the run ended before {verb} could be killed")


def _until(process: subprocess.Popen[bytes], log: Path, word: str) -> None:
    """Wait until a log contains `word`."""
    while process.poll() is None:
        if log.exists() and word in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"the run ended before its log said {word!r}")


def _tables(*workflows: Workflow) -> list[pd.DataFrame]:
    return [pd.read_csv(w.folder / "results/benchmarks/main/table.csv") for w in workflows]


@pytest.mark.xdist_group("finished")
def test_after_all_processes_were_killed_a_resumed_run_ends_in_the_same_table(
    finished: Workflow, tmp_path: Path
) -> None:
    """All processes are killed at once; then the commands of docs/hpc.md are run."""
    workflow = finished.copied(tmp_path / "run")
    log = workflow.folder / "results/logs/pretrain/simclr.log"
    shutil.rmtree(workflow.folder / "results/encoders/simclr")
    shutil.rmtree(workflow.folder / "results/benchmarks")
    log.unlink()
    process = subprocess.Popen(workflow.command(), env=ENV, start_new_session=True)
    _until(process, log, "steps of")
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert "LockException" in workflow.run("--rerun-incomplete", fails=True)
    workflow.run("--unlock")
    workflow.run("--rerun-incomplete")
    pd.testing.assert_frame_equal(*_tables(workflow, finished))


@pytest.mark.xdist_group("finished")
def test_after_pretraining_was_killed_a_resumed_run_ends_in_the_same_table(
    finished: Workflow, tmp_path: Path
) -> None:
    workflow = finished.copied(tmp_path / "run")
    encoder = workflow.folder / "results/encoders/simclr"
    log = workflow.folder / "results/logs/pretrain/simclr.log"
    shutil.rmtree(encoder)
    log.unlink()
    process = subprocess.Popen(workflow.command("results/encoders/simclr/model"), env=ENV)
    _kill_when(process, "pretrain", log, "steps of")  # logged before the first step
    assert process.wait() != 0
    assert not (encoder / "model").exists()
    workflow.run("--rerun-incomplete")
    pd.testing.assert_frame_equal(*_tables(workflow, finished))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Snakemake is watched in /proc")
def test_after_kill_9_of_snakemake_its_job_ends_and_removes_its_files(tmp_path: Path) -> None:
    launch.init(tmp_path, demo=True)
    log = tmp_path / "results/logs/demo.log"
    command = Workflow(tmp_path).command("results/demo/slides.csv")
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL)
    _until(process, log, "1 of ")
    jobs = psutil.Process(process.pid).children(recursive=True)
    assert list(tmp_path.glob("results/.tmp-*"))
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(jobs, timeout=30)
    assert not alive
    assert f"Snakemake (process {process.pid}) has ended" in log.read_text()
    assert not list(tmp_path.glob("results/.tmp-*"))
