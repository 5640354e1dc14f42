"""The backends numba and Triton agree with torch, and each is chosen where it can be used."""

from __future__ import annotations

import importlib
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stainssl.stain import (
    METHODS,
    Constants,
    StainProfile,
    backends,
    estimate,
    numba_backend,
    torch_backend,
)
from stainssl.stain.density import DEFAULTS
from stainssl.stain.estimate import plane, unmix
from tests.stain import synthetic
from tests.stain.test_estimate import adversarial_batch

CONSTANTS = {
    "default": DEFAULTS,
    "veta": Constants(io=240),
    "decimal": Constants(io=255, offset=0.5, beta=0.1, log_base=10),
    "thinned": Constants(max_pixels=1000),
    "all pixels": Constants(beta=-math.inf),
}
every_constants = pytest.mark.parametrize("constants", CONSTANTS.values(), ids=CONSTANTS)
every_dtype = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])


def images(dtype: torch.dtype = torch.uint8, n: int = 4, size: int = 50) -> Tensor:
    """(n, 3, size, size + 3): tiles with some glass and black, not a whole number of blocks."""
    rng = np.random.default_rng(0)
    tiles = [synthetic.tile(rng, synthetic.stain_vectors(rng), size=size + 3) for _ in range(n)]
    for tile in tiles:
        tile[:5], tile[5:8, :6] = 250, 0
    found = synthetic.to_images([tile[:size] for tile in tiles])
    return found if dtype == torch.uint8 else found.to(dtype) / 255


def both(
    batch: Tensor, constants: Constants, tissue: Tensor | None = None
) -> tuple[torch_backend.Sample, numba_backend.Sample]:
    return torch_backend.Sample(batch, constants, tissue), numba_backend.Sample(
        batch, constants, tissue
    )


@every_dtype
@every_constants
@pytest.mark.parametrize("masked", [False, True])
def test_moments_agree(dtype, constants, masked):
    batch = images(dtype)
    tissue = torch.rand(4, 50, 53, generator=torch.Generator().manual_seed(0)) > 0.5
    one, other = both(batch, constants, tissue if masked else None)
    for a, b in zip(one.moments(), other.moments(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)
    for a, b in zip(one.lab_moments(), other.lab_moments(), strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=1e-3)


@every_dtype
@every_constants
def test_quantiles_and_vectors_agree(dtype, constants):
    one, other = both(images(dtype), constants)
    basis, _ = plane(one.moments(), constants)
    found = [s.angle_quantiles(basis, (0.01, 0.5, 0.99)) for s in (one, other)]
    torch.testing.assert_close(*found, atol=2e-3, rtol=0)
    start = StainProfile.reference("macenko").batched().matrix.expand(4, 2, 3)
    found = [s.concentration_quantile(unmix(start), 0.99) for s in (one, other)]
    torch.testing.assert_close(*found, atol=2e-3, rtol=2e-3)
    found = [s.thinned(900).sparse_vectors(start, 0.01, 10) for s in (one, other)]
    torch.testing.assert_close(*found, atol=2e-3, rtol=0)


@every_dtype
@every_constants
def test_maps_agree(dtype, constants):
    batch, rng = images(dtype), torch.Generator().manual_seed(0)
    matrix = torch.eye(3) + 0.2 * torch.randn(4, 3, 3, generator=rng)
    shift = 0.1 * torch.randn(4, 3, generator=rng)
    grey = 255 if dtype != torch.uint8 else 1
    for arguments in ((matrix, shift, constants), (1 + shift, 20 * shift)):
        name = "map_density" if len(arguments) == 3 else "map_lab"
        one, other = (
            getattr(side, name)(batch, *arguments) for side in (torch_backend, numba_backend)
        )
        assert one.dtype == other.dtype == dtype
        difference = (one.double() - other.double()).abs() * grey
        assert difference.max() <= (1 if dtype == torch.uint8 else 0.05)
        assert difference.mean() < 0.01


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(sorted(METHODS)))
def test_both_backends_agree_which_unusual_tiles_are_valid(seed, method):
    odd = adversarial_batch(seed)
    found = [METHODS[method](sample) for sample in both(odd, DEFAULTS)]
    # Rounding may decide for a tile that is exactly at a limit.
    assert (found[0].valid != found[1].valid).sum() <= 2


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf, -1.0, 7.0])
def test_floats_out_of_range_agree(fill):
    batch = images(torch.float32)
    batch[:, :, 20:30] = fill
    one, other = both(batch, DEFAULTS)
    for a, b in zip(one.lab_moments(), other.lab_moments(), strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=1e-3)
    identity, none = torch.eye(3).expand(4, 3, 3), torch.zeros(4, 3)
    mapped = [
        side.map_density(batch, identity, none, DEFAULTS) for side in (torch_backend, numba_backend)
    ]
    torch.testing.assert_close(*mapped, atol=1e-4, rtol=0)


def test_estimates_do_not_depend_on_the_number_of_threads():
    batch, threads = images(n=5), torch.get_num_threads()
    once = estimate(batch)
    try:
        torch.set_num_threads(3)
        again = estimate(batch)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, again.tensors[name]) for name, a in once.tensors.items())


def test_torch_is_used_for_gradients_and_other_devices():
    plain, with_gradient = torch.zeros(1), torch.zeros(1, requires_grad=True)
    assert backends.backend(plain) is numba_backend
    assert backends.backend(plain, with_gradient) is torch_backend
    assert backends.backend(torch.zeros(1, device="meta")) is torch_backend
    with torch.no_grad():
        assert backends.backend(with_gradient) is numba_backend


@pytest.fixture
def triton_backend(monkeypatch):
    """The Triton backend, run by Triton's interpreter on a CPU."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, "stainssl.stain.triton_backend", raising=False)
    return importlib.import_module("stainssl.stain.triton_backend")


@every_dtype
@every_constants
def test_map_density_of_triton_agrees(dtype, constants, triton_backend):
    batch, rng = images(dtype, n=2), torch.Generator().manual_seed(0)
    matrix = torch.eye(3) + 0.2 * torch.randn(2, 3, 3, generator=rng)
    shift = 0.1 * torch.randn(2, 3, generator=rng)
    one, other = (
        side.map_density(batch, matrix, shift, constants)
        for side in (torch_backend, triton_backend)
    )
    assert one.dtype == other.dtype
    assert (one.double() - other.double()).abs().max() <= (1 if dtype == torch.uint8 else 1e-5)


def test_map_density_of_triton_agrees_for_floats_out_of_range(triton_backend):
    odd = torch.tensor([math.nan, math.inf, -math.inf, -1, 7, 0.5]).expand(1, 3, 1, 6)
    given = torch.eye(3)[None], torch.zeros(1, 3), DEFAULTS
    one, other = (side.map_density(odd, *given) for side in (torch_backend, triton_backend))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert triton_backend.map_density(odd[:0], *given).shape == (0, 3, 1, 6)


def test_triton_is_used_only_if_it_agrees_with_torch(triton_backend, monkeypatch, caplog):
    cpu = torch.device("cpu")
    backends._triton.cache_clear()
    assert backends._triton(cpu) is triton_backend
    backends._triton.cache_clear()
    monkeypatch.setattr(triton_backend, "agrees", lambda device: 1 / 0)
    assert backends._triton(cpu) is torch_backend
    assert "division by zero" in caplog.text
    backends._triton.cache_clear()


def test_torch_is_used_without_numba(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "stainssl.stain.numba_backend", None)
    monkeypatch.delattr("stainssl.stain.numba_backend")
    assert backends.backend(torch.zeros(1)) is torch_backend
    assert "numba cannot be used" in caplog.text
