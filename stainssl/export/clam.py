"""Write CLAM's feature files.

Lu et al. 2021; github.com/mahmoodlab/CLAM, extract_features_fp.py.
"""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import torch

from stainssl.export.slide import ExportedSlide
from stainssl.export.tables import Tables
from stainssl.stores.atomic import replacing, write_bytes
from stainssl.stores.hdf5 import new_hdf5

FILES = "h5_files/*.h5"  # of slides, as the tool reads them
CHUNK_ROWS = 256  # CLAM's own files have one row per chunk, which its readers do not need


def write_slide(folder: Path, slide: ExportedSlide) -> None:
    """Write `h5_files/{slide}.h5`, `pt_files/{slide}.pt` and `patches/{slide}.h5`.

    `features` is (N, D) float32 and `coords` (N, 2) int32, left and top in level-0 px, as read by
    CLAM's `Generic_MIL_Dataset`. The `.pt` file has only the features. CLAM's heatmaps and
    TRIDENT's `read_coords_legacy` take the tile size from the file in `patches`.
    """
    features = slide.features.astype(np.float32)
    coords = slide.xy_level0_px.astype(np.int32)
    with new_hdf5(folder / "h5_files" / f"{slide.slide_id}.h5") as h5:
        create_resizable_dataset(h5, "features", features)
        create_resizable_dataset(h5, "coords", coords)
    tensor = io.BytesIO()
    torch.save(torch.from_numpy(features), tensor)
    write_bytes(folder / "pt_files" / f"{slide.slide_id}.pt", tensor.getbuffer())
    with new_hdf5(folder / "patches" / f"{slide.slide_id}.h5") as h5:
        size = np.array(slide.size_level0_px)
        create_resizable_dataset(h5, "coords", coords).attrs.update({
            "patch_size": round(slide.side_level0_px), "patch_level": 0, "downsample": np.ones(2),
            "downsampled_level_dim": size, "level_dim": size, "name": slide.slide_id,
            "save_path": str(folder / "patches"),
        })  # fmt: skip


def create_resizable_dataset(h5: h5py.File, name: str, values: np.ndarray) -> h5py.Dataset:
    """Create a dataset that is resizable along its rows, in chunks of whole rows."""
    rows = max(1, min(CHUNK_ROWS, len(values)))
    shape = values.shape[1:]
    return h5.create_dataset(name, data=values, chunks=(rows, *shape), maxshape=(None, *shape))


def write_tables(folder: Path, tables: Tables) -> None:
    """Write `dataset.csv` for CLAM's `csv_path`: `case_id`, `slide_id`, the sheet's labels."""
    named = tables.slides.rename(columns={"patient_id": "case_id"})
    first = ["case_id", "slide_id"]
    with replacing(folder / "dataset.csv") as made:
        named[first + [c for c in named if c not in first]].to_csv(made, index=False)
