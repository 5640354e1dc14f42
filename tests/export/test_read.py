"""Reading feature files; invalid ones are refused without using memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from stainssl.errors import SlideError
from stainssl.export.read import read_slide


def _h5(**arrays: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with h5py.File(folder / "s.h5", "w") as file:
            for name, values in arrays.items():
                file[name] = values

    return write


def _huge(folder: Path) -> None:
    with h5py.File(folder / "s.h5", "w") as file:
        file.create_dataset("features", (10**9, 1536), "f4", chunks=(1024, 1536))
        file["coords"] = np.zeros((1, 2))


def _external_dataset(folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(64))
    with h5py.File(folder / "s.h5", "w") as file:
        place = [(str(folder / "secret"), 0, 64)]
        file.create_dataset("features", (4, 4), "f4", external=place)
        file["coords"] = np.zeros((4, 2))


def _linked(link: h5py.ExternalLink | h5py.SoftLink) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with h5py.File(folder / "other.h5", "w") as file:
            file["features"] = np.zeros((4, 4))
        with h5py.File(folder / "s.h5", "w") as file:
            file["folder"] = h5py.ExternalLink("other.h5", "/")
            file["features"] = link
            file["coords"] = np.zeros((4, 2))

    return write


XY = np.zeros((4, 2), np.int64)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_h5(features=b"text", coords=XY), "is not numeric"),
        (_h5(features=np.zeros((4, 0)), coords=XY), r"features \(4, 0\)"),
        (_h5(features=np.zeros(4), coords=XY), r"features \(4,\)"),
        (_h5(**{"features/deeper": np.zeros(4)}, coords=XY), "not stored in this file"),
        (_h5(features=np.zeros((4, 3)), coords=XY[:3]), r"coords \(3, 2\)"),
        (_huge, "declares .* bytes that are not in the file"),
        (_external_dataset, "external datasets are not followed"),
        (_linked(h5py.ExternalLink("other.h5", "/features")), "external datasets are not followed"),
        (_linked(h5py.SoftLink("/folder/features")), "links are not followed"),
        (lambda folder: torch.save(torch.zeros(4), folder / "s.pt"), r"features \(4,\)"),
        (lambda folder: torch.save(["text"], folder / "s.pt"), "has no tensor"),
    ],
)
def test_invalid_feature_files_are_refused(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path)
    with pytest.raises(SlideError, match=message):
        read_slide("clam", tmp_path, "s")


def test_strongly_compressed_features_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        zeros = np.zeros((5000, 512), np.float32)
        file.create_dataset("features", data=zeros, compression="gzip", compression_opts=9)
        file["coords"] = np.zeros((5000, 2))
    found = read_slide("clam", tmp_path, "s")
    assert found is not None
    assert found.features.shape == (5000, 512)


def test_a_slide_vector_of_trident_is_read_as_a_single_tile(tmp_path: Path) -> None:
    vector = np.arange(6, dtype=np.float32)
    _h5(features=vector, coords=XY)(tmp_path)
    found = read_slide("trident", tmp_path, "s")
    assert found is not None
    np.testing.assert_array_equal(found.features, vector[None])
    np.testing.assert_array_equal(found.xy_level0_px, [[-1, -1]])  # without a position
    _h5(features=np.empty(0, np.float32), coords=XY)(tmp_path)  # of a slide without tiles
    with pytest.raises(SlideError, match=r"features \(1, 0\)"):
        read_slide("trident", tmp_path, "s")
