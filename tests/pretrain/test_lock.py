"""The lock of a folder of checkpoints, into which one training at a time may write."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stainssl.errors import StainsslError
from stainssl.pretrain import lock
from stainssl.pretrain.lock import Holder, training_lock

HOLD = """
import sys, time
from pathlib import Path
from stainssl.pretrain.lock import training_lock
with training_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path):
    """A process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_training_is_refused_with_the_process_to_kill(tmp_path: Path, other) -> None:
    refused = pytest.raises(StainsslError, match=rf"process {other.pid} on .* kill {other.pid}")
    with refused, training_lock(tmp_path, wait=False):
        raise AssertionError("two at a time")


def test_the_lock_of_a_killed_training_is_released(tmp_path: Path, other) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with training_lock(tmp_path, wait=False):
        assert Holder.read(tmp_path / lock.LOCK).pid == os.getpid()
    assert Holder.read(tmp_path / lock.LOCK) is None


def test_a_second_training_waits_and_logs_the_holder(
    tmp_path: Path, other, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def end_holder(seconds: float) -> None:
        other.kill()
        other.wait()

    monkeypatch.setattr(lock.time, "sleep", end_holder)
    with caplog.at_level(logging.WARNING), training_lock(tmp_path):
        pass
    assert f"process {other.pid} on" in caplog.text
    assert "waiting for it" in caplog.text


def _write_lock_of_another_host(folder: Path) -> None:
    holder = {"host": "elsewhere", "pid": 1, "since": "2026-01-01 00:00:00", "job": "77"}
    (folder / lock.LOCK).write_text(json.dumps(holder))


def test_a_lock_of_another_host_holds_while_its_heartbeat_is_recent(tmp_path: Path) -> None:
    _write_lock_of_another_host(tmp_path)
    refused = pytest.raises(StainsslError, match=r"on elsewhere, SLURM job 77.*scancel 77")
    with refused, training_lock(tmp_path, wait=False):
        raise AssertionError("two at a time")
    long_ago = (tmp_path / lock.LOCK).stat().st_mtime - 2 * lock.DEAD_AFTER_SECONDS
    os.utime(tmp_path / lock.LOCK, (long_ago, long_ago))
    with training_lock(tmp_path, wait=False):
        pass


def test_the_holder_writes_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with training_lock(tmp_path):
        os.utime(tmp_path / lock.LOCK, (0, 0))
        for _ in range(500):
            if (tmp_path / lock.LOCK).stat().st_mtime:
                return
            lock.time.sleep(0.01)
    raise AssertionError("no sign of life")


def test_without_file_locks_the_lock_holds_while_its_process_is_alive(
    tmp_path: Path, other, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*args: object) -> None:
        raise OSError(lock.errno.ENOSYS, "no locks here")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    refused = pytest.raises(StainsslError, match=f"process {other.pid}")
    with refused, training_lock(tmp_path, wait=False):
        raise AssertionError("two at a time")
    other.kill()
    other.wait()
    with training_lock(tmp_path, wait=False):
        pass
