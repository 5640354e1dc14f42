"""Reservation of GPUs by jobs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from stainssl.runtime import devices as device
from stainssl.runtime.gpus import gpu_count_from_log

Job = Callable[[int], str]


@pytest.fixture
def job(monkeypatch, tmp_path) -> Iterator[Job]:
    """Reserve GPUs of a machine with three, as another job would; returns the visible ones."""
    monkeypatch.setattr(device.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    for name in ("LOCAL_RANK", "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    locks = []

    def reserve(count: int) -> str:
        monkeypatch.delenv(device.VISIBLE, raising=False)
        monkeypatch.setattr(device, "_held", {})
        device.reserve_gpus(count)
        locks.extend(device._held.values())
        return os.environ.get(device.VISIBLE, "all")

    reserve.locks = locks
    yield reserve
    for lock in locks:
        lock.close()


def test_jobs_reserve_different_gpus_while_enough_are_free(job, caplog):
    assert [job(1), job(2)] == ["0", "1,2"]
    assert "are free" not in caplog.text
    assert job(1) in ("0", "1", "2")
    assert "0 of 3 GPUs are free, 1 requested" in caplog.text


def test_missing_free_gpus_are_filled_up_with_used_ones(job):
    assert job(2) == "0,1"
    assert sorted(job(2).split(",")) in (["0", "2"], ["1", "2"])


def test_a_job_that_ended_frees_its_gpu(job):
    assert job(1) == "0"
    job.locks.pop().close()  # as the system does when a process ends
    assert job(1) == "0"


@pytest.mark.parametrize("count", [0, 3, 4])
def test_a_request_for_all_gpus_restricts_nothing(job, count):
    assert job(count) == "all"


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (0, 3), (5, 3)])
def test_the_log_has_the_number_of_gpus_of_a_job(job, caplog, count, expected):
    caplog.set_level("INFO")
    job(count)
    assert gpu_count_from_log(caplog.text) == expected


@pytest.mark.parametrize(("process", "expected"), [("0", 4), ("1", 0)])
def test_only_the_first_process_of_an_srun_step_logs_its_gpus(
    job, monkeypatch, caplog, process, expected
):
    caplog.set_level("INFO")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", process)
    job(0)
    assert gpu_count_from_log(caplog.text) == expected


def test_only_gpus_that_a_scheduler_made_visible_are_reserved(job, monkeypatch):
    monkeypatch.setattr(device, "_held", {})
    monkeypatch.setenv(device.VISIBLE, "GPU-a, GPU-b")
    device.reserve_gpus(1)
    assert os.environ[device.VISIBLE] == "GPU-a"
    device._held["GPU-a"].close()


def test_a_process_of_a_group_keeps_its_gpus(job, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(device.VISIBLE, "0,1,2")
    device.reserve_gpus(1)
    assert os.environ[device.VISIBLE] == "0,1,2"


def test_without_a_gpu_the_device_is_the_cpu(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: 0)
    assert device.reserve_device() == "cpu"
    assert gpu_count_from_log(caplog.text) == 0
