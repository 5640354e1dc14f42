"""Each job takes a GPU of its own, and gives it back however it ends."""

from __future__ import annotations

import types

import pytest

from stainssl import device


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(device.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        device.torch.cuda, "get_device_properties", lambda i: types.SimpleNamespace(uuid=f"u{i}")
    )
    monkeypatch.setattr(device, "_held", held := [])
    yield held
    for lock in held:
        lock.close()


def test_jobs_take_one_gpu_each_then_share(two_gpus, caplog):
    assert [device.pick() for _ in range(2)] == ["cuda:0", "cuda:1"]
    assert device.pick() in ("cuda:0", "cuda:1")
    assert "held by other jobs" in caplog.text


def test_a_job_that_ended_frees_its_gpu(two_gpus):
    assert device.pick() == "cuda:0"
    two_gpus[0].close()  # as the system does when a process dies
    assert device.pick() == "cuda:0"


def test_without_a_gpu_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    assert device.pick() == "cpu"
