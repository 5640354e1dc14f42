"""Memory of the GPU by nvidia-smi, or else of the machine."""

from __future__ import annotations

import subprocess

import pytest

from stainssl.runtime import memory


@pytest.fixture
def fake_nvidia_smi(monkeypatch):
    """Replace nvidia-smi by one with a given output; returns the commands that are run."""
    commands: list[list[str]] = []

    def install(text: str | BaseException) -> list[list[str]]:
        def run(command, **_options):
            commands.append(command)
            if isinstance(text, BaseException):
                raise text
            return subprocess.CompletedProcess(command, 0, stdout=text)

        memory._gpus.cache_clear()
        monkeypatch.setattr(memory.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
        monkeypatch.setattr(memory.subprocess, "run", run)
        return commands

    yield install
    memory._gpus.cache_clear()


def test_the_smallest_visible_gpu_counts(fake_nvidia_smi, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    commands = fake_nvidia_smi("81559\n24576\n")
    assert memory.memory_bytes() == 24576 * 2**20
    assert commands[0][-1] == "--id=1,2"


@pytest.mark.parametrize(
    "text",
    [subprocess.CalledProcessError(9, "nvidia-smi"), OSError("no"),
     subprocess.TimeoutExpired("nvidia-smi", 1), "[N/A]\n"],
)  # fmt: skip
def test_without_output_of_nvidia_smi_it_is_the_memory_of_the_machine(
    fake_nvidia_smi, monkeypatch, text
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake_nvidia_smi(text)
    assert memory.memory_bytes() == memory.machine_bytes() > 10**8


def test_nvidia_smi_is_not_run_if_no_gpu_is_visible(fake_nvidia_smi, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    commands = fake_nvidia_smi("24576\n")
    assert memory.memory_bytes() == memory.machine_bytes()
    assert not commands
