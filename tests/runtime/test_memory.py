"""The memory of the device is asked of its driver, or of the machine, and nothing is raised."""

from __future__ import annotations

import subprocess

import pytest

from stainssl.runtime import memory


@pytest.fixture
def answered(monkeypatch):
    """A driver that answers with some text; and what it was asked."""
    asked: list[list[str]] = []

    def answer(text: str | BaseException) -> list[list[str]]:
        def run(command, **_words):
            asked.append(command)
            if isinstance(text, BaseException):
                raise text
            return subprocess.CompletedProcess(command, 0, stdout=text)

        memory._gpus.cache_clear()
        monkeypatch.setattr(memory.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
        monkeypatch.setattr(memory.subprocess, "run", run)
        return asked

    yield answer
    memory._gpus.cache_clear()


def test_the_smallest_gpu_that_may_be_used_counts(answered, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    asked = answered("81559\n24576\n")
    assert memory.memory_bytes() == 24576 * 2**20
    assert asked[0][-1] == "--id=1,2"


@pytest.mark.parametrize(
    "text",
    [subprocess.CalledProcessError(9, "nvidia-smi"), OSError("no"),
     subprocess.TimeoutExpired("nvidia-smi", 1), "[N/A]\n"],
)  # fmt: skip
def test_without_an_answer_it_is_the_machines(answered, monkeypatch, text):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    answered(text)
    assert memory.memory_bytes() == memory.machine_bytes() > 10**8


def test_a_process_that_may_see_no_gpu_asks_for_none(answered, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    asked = answered("24576\n")
    assert memory.memory_bytes() == memory.machine_bytes()
    assert not asked
