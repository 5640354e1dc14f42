"""Read the feature files of CLAM and TRIDENT: embeddings and coordinates of a slide's tiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import torch

from stainssl.errors import SlideError, Status
from stainssl.export.source import feature_file
from stainssl.slides.hdf5_patch import own_dataset

MAX_COMPRESSED = 1100  # largest plausible compression ratio; deflate reaches 1032 on zeros
UNKNOWN = -1  # x and y of a tile if its file has no coordinates


@dataclass(frozen=True)
class Features:
    """Imported embeddings of one slide.

    Attributes:
        features: (N, D) float32.
        xy_level0_px: (N, 2) int64, left and top of each tile; -1 if unknown.
    """

    features: npt.NDArray[np.float32]
    xy_level0_px: npt.NDArray[np.int64]


def read_slide(tool: str, folder: Path, slide_id: str) -> Features | None:
    """Read the features of one slide; None if the folder has no file for it.

    TRIDENT's folders `slide_features_…` have one vector per slide, which is read as one tile.

    Args:
        tool: `clam` or `trident`.
        folder: folder of the feature files.
        slide_id: name of the slide.

    Raises:
        SlideError: the file is damaged or does not have the tool's layout.
    """
    path = feature_file(tool, folder, slide_id)
    if path is None:
        return None
    return _read_pt(path) if path.suffix == ".pt" else _read_h5(path, tool == "trident")


def _read_h5(path: Path, may_be_of_slide: bool) -> Features:
    try:
        with h5py.File(path, "r") as h5:
            features, coords = (_array(h5, name) for name in ("features", "coords"))
    except (OSError, KeyError, ValueError) as error:
        raise SlideError(
            Status.UNREADABLE, f"{path} is not a feature file ('features', 'coords'): {error}"
        ) from error
    if may_be_of_slide and features.ndim == 1:  # TRIDENT's `slide_features_…`
        features, coords = features[None], np.full((1, 2), UNKNOWN)
    return _checked(path, features, coords)


def _array(h5: h5py.File, name: str) -> np.ndarray:
    """Read a numeric array whose values are in the file itself.

    Raises:
        KeyError, ValueError: there is no such array.
    """
    found = own_dataset(h5, name)
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{name!r} is not numeric")
    if found.nbytes > MAX_COMPRESSED * found.id.get_storage_size() + 2**20:
        raise ValueError(f"{name!r} declares {found.nbytes:,} bytes that are not in the file")
    return np.asarray(found)


def _read_pt(path: Path) -> Features:
    try:
        features = torch.load(path, map_location="cpu", weights_only=True)
        values = features.float().numpy()
    except Exception as error:  # torch, zip and pickle each raise their own types
        raise SlideError(Status.UNREADABLE, f"{path} has no tensor: {error}") from error
    return _checked(path, values, np.full((*values.shape[-2:-1], 2), UNKNOWN))


def _checked(path: Path, features: np.ndarray, coords: np.ndarray) -> Features:
    # Some versions of the tools keep a leading axis of length 1.
    features = features[0] if features.ndim == 3 and len(features) == 1 else features
    coords = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords
    if features.ndim != 2 or not features.shape[1] or coords.shape != (len(features), 2):
        raise SlideError(
            Status.UNREADABLE,
            f"{path}: features {features.shape}, coords {coords.shape}; expected (N, D), (N, 2).",
        )
    return Features(features.astype(np.float32), coords.astype(np.int64))
