"""A compiled network gives the same embeddings, and runs uncompiled if compilation fails."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from stainssl.encoders import compiling
from stainssl.encoders.compiling import CompiledNetwork
from stainssl.encoders.loading import new_backbone


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return new_backbone("test_resnet", 64)[0].eval()


@torch.inference_mode()
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])  # without the code generator
def test_embeddings_are_those_of_the_uncompiled_network(
    network: nn.Module, backend: str, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(compiling.torch, "compile", partial(torch.compile, backend=backend))
    compiled = CompiledNetwork(network)
    for count in (4, 3):  # the last batch of a part is smaller
        images = torch.rand(count, 3, 64, 64)
        found, expected = compiled(images), network(images)
        # The tolerance is the rounding of float16.
        torch.testing.assert_close(found, expected, rtol=2**-11, atol=1e-6)
    assert "torch.compile failed" not in caplog.text


@torch.inference_mode()
def test_a_failed_compilation_is_logged_once_and_the_network_runs_uncompiled(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def failing_compile(_: nn.Module):
        def run(_: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("Failed to find C compiler.\nA long trace.")

        return run

    monkeypatch.setattr(compiling.torch, "compile", failing_compile)
    compiled, images = CompiledNetwork(network), torch.rand(2, 3, 64, 64)
    for _ in range(2):
        torch.testing.assert_close(compiled(images), network(images), rtol=0, atol=0)
    assert caplog.text.count("torch.compile failed, it goes on without") == 1
    assert "Failed to find C compiler" in caplog.text
    assert "A long trace" not in caplog.text


def test_out_of_memory_is_raised_and_not_taken_for_a_failed_compilation(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("too many tiles")

    monkeypatch.setattr(compiling.torch, "compile", lambda _: run)
    compiled = CompiledNetwork(network)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            compiled(torch.rand(2, 3, 64, 64))
