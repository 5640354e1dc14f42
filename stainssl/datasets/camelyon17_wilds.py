"""CAMELYON17-WILDS 1.0: 455,954 patches of 96 px from lymph nodes of five hospitals.

Layout and columns as read by `p-lambda/wilds`, `wilds/datasets/camelyon17_dataset.py`:
`metadata.csv` with an unnamed index, `patient` (three digits), `node`, `x_coord`, `y_coord`,
`tumor`, `slide`, `center`, `split`, and
`patches/patient_<p>_node_<n>/patch_patient_<p>_node_<n>_x_<x>_y_<y>.png`.

The official split is by hospital: 0, 3 and 4 for training, 1 for validation, 2 for test. The column
`split` is something else: 1 marks patches of all hospitals that were sampled for in-distribution
validation, from patients who are also in training. Those of the training hospitals are excluded, as
in the benchmark, or used for training (`in_distribution: train`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from stainssl.datasets.release import (
    FolderContents,
    Options,
    Release,
    column,
    find_files,
    read_text_table,
)
from stainssl.errors import StainsslError

SPLITS = {"0": "train", "3": "train", "4": "train", "1": "val", "2": "test"}
KEYS = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")


def _listed(root: Path) -> list[str]:
    """List patches folder by folder; checking half a million files one by one takes minutes."""
    folders = [p for p in (root / "patches").glob("patient_*") if p.is_dir()]
    found = (f"patches/{p.name}/{name}" for p in folders for name in os.listdir(p))
    return sorted(name for name in found if name.endswith(".png"))


def _table(root: Path) -> pd.DataFrame:
    path = root / "metadata.csv"
    raw = read_text_table(path)
    return pd.DataFrame({key: column(raw, key, path) for key in KEYS})


def _read(root: Path, options: Options) -> FolderContents:
    if not (root / "metadata.csv").exists() and find_files(root, "*/metadata.csv"):
        raise StainsslError(f"{root} contains the release in a sub-folder: give that one.")
    table = _table(root)
    patient = table["patient"].str.zfill(3)
    slide = "patient_" + patient + "_node_" + table["node"]
    patch = slide + "_x_" + table["x_coord"] + "_y_" + table["y_coord"]
    split = table["center"].map(SPLITS)
    if split.isna().any():
        strange = ", ".join(sorted(set(table.loc[split.isna(), "center"])))
        raise StainsslError(f"{root / 'metadata.csv'}: center is {strange}: known are 0 to 4.")
    drawn = (table["split"] == "1") & (split == "train")
    rows = pd.DataFrame(
        {
            "slide_id": patch,
            "patient_id": "patient_" + patient,
            "path": "patches/" + slide + "/patch_" + patch + ".png",
            "site": "hospital-" + table["center"],
            "split": split,
            "tumor": table["tumor"],
            "slide": slide,
        }
    )
    notes = []
    if drawn.any() and options["in_distribution"] == "exclude":
        rows["exclude"] = drawn.map({True: "true", False: ""})
        notes.append(
            f"{int(drawn.sum())} in-distribution validation patches are of training patients and "
            "are excluded, as the benchmark does (option in_distribution)"
        )
    return FolderContents(rows, _listed(root), notes)


RELEASE = Release(
    name="camelyon17-wilds",
    title="CAMELYON17-WILDS 1.0, tumour in patches across hospitals",
    kind="patches",
    read=_read,
    options={"in_distribution": ("exclude", "train")},
    classes={"tumor": frozenset({"0", "1"})},
    published={
        "slides": 455_954,
        "split=train": 335_996,
        "split=val": 34_904,
        "split=test": 85_054,
    },
)
