"""Truncated TIFF files are detected without reading pixels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from stainssl.slides.truncation import shortfall


def write(path: Path, **options: object) -> Path:
    image = np.arange(200 * 300 * 3, dtype=np.uint8).reshape(200, 300, 3)
    with tifffile.TiffWriter(path, **options) as writer:  # type: ignore[arg-type]
        for step in (1, 2):
            writer.write(image[::step, ::step], tile=(64, 64), photometric="rgb", metadata=None)
    return path


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_any_truncation_is_detected(tmp_path: Path, bigtiff: bool, byteorder: str) -> None:
    path = write(tmp_path / "a.tif", bigtiff=bigtiff, byteorder=byteorder)
    assert shortfall(path) is None
    size = path.stat().st_size
    for length in range(size - 1, 16, -size // 17):
        os.truncate(path, length)
        found = shortfall(path)
        assert found is not None
        assert f"{length:,}" in found


@given(st.binary(max_size=400))
def test_arbitrary_bytes_give_a_message_or_none(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.tif"
    for head in (b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b""):
        path.write_bytes(head + tail)
        assert shortfall(path) is None or "ends at byte" in str(shortfall(path))


def test_a_cycle_of_directories_ends(tmp_path: Path) -> None:
    path = tmp_path / "loop.tif"
    path.write_bytes(b"II*\0" + (8).to_bytes(4, "little") + b"\0\0" + (8).to_bytes(4, "little"))
    assert shortfall(path) is None


def test_real_slides_are_not_truncated(real_data: Path) -> None:
    for name in ("CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs", "boxes.tiff"):
        assert shortfall(real_data / "slides" / name) is None
