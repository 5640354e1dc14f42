"""PatchCamelyon: 327,680 patches of 96 px in HDF5, from the slides of CAMELYON16.

`camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5` (unpacked from `.gz`; datasets `x`, (N,
96, 96, 3) uint8, and `y`, (N, 1, 1, 1)) and `…_meta.csv` (`coord_x`, `coord_y`, `tumor_patch`,
`center_tumor_patch`, `wsi`), as read by `basveeling/pcam`, `keras_pcam/dataset/pcam.py`. The path
of a patch is file and row, `….h5#17`, so that patches are not unpacked. The release does not name
patients: each slide counts as a patient.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stainssl.datasets.release import (
    FolderContents,
    Options,
    Release,
    column,
    find_files,
    read_text_table,
    safe_id,
)
from stainssl.errors import StainsslError

SPLITS = {"train": "train", "valid": "val", "test": "test"}
MPP = "0.972"  # µm/px: level 2 of slides with 0.243 µm/px
_NAME = "camelyonpatch_level_2_split_{split}_{what}"


def _labels(path: Path) -> np.ndarray:
    """(N,) labels as str, 0 or 1."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file["y"]).reshape(-1).astype(int).astype(str)
    except (OSError, KeyError) as error:
        raise StainsslError(
            f"{path} is incomplete or still compressed ({error}): gunzip the release."
        ) from error


def _slides(root: Path, split: str, count: int) -> pd.Series:
    """The slide of each patch; one placeholder per split if the table is missing."""
    path = root / f"{_NAME.format(split=split, what='meta')}.csv"
    if not path.exists():
        return pd.Series([f"unknown_{split}"] * count)
    slides = column(read_text_table(path), "wsi", path)
    if len(slides) != count:
        raise StainsslError(f"{path} has {len(slides)} rows, the labels have {count}.")
    return slides


def _split_rows(root: Path, split: str) -> pd.DataFrame:
    labels = _labels(root / f"{_NAME.format(split=split, what='y')}.h5")
    slides = _slides(root, split, len(labels)).map(safe_id)
    numbers = [f"{i:06d}" for i in range(len(labels))]
    file = f"{_NAME.format(split=split, what='x')}.h5"
    return pd.DataFrame(
        {
            "slide_id": [f"{split}_{number}" for number in numbers],
            "patient_id": slides,
            "path": [f"{file}#{int(number)}" for number in numbers],
            "split": SPLITS[split],
            "mpp": MPP,
            "tumor": labels,
        }
    )


def _read(root: Path, _options: Options) -> FolderContents:
    there = find_files(root, "camelyonpatch_level_2_split_*_x.h5")
    splits = [s for s in SPLITS if (root / f"{_NAME.format(split=s, what='y')}.h5").exists()]
    if not splits:
        raise StainsslError(
            f"{root}: no {_NAME.format(split='<split>', what='y')}.h5: gunzip the release there."
        )
    rows = pd.concat([_split_rows(root, split) for split in splits], ignore_index=True)
    files = rows.loc[rows["path"].str.split("#").str[0].isin(there), "path"].tolist()
    notes = ["patients are not given: each slide counts as a patient"]
    if rows["patient_id"].str.startswith("unknown_").any():
        notes.append("a …_meta.csv is missing: the patches of its split count as one patient")
    return FolderContents(rows, files, notes)


RELEASE = Release(
    name="pcam",
    title="PatchCamelyon, tumour in patches",
    kind="patches",
    read=_read,
    classes={"tumor": frozenset({"0", "1"})},
    published={
        "slides": 327_680, "split=train": 262_144, "split=val": 32_768, "split=test": 32_768,
    },
)  # fmt: skip
