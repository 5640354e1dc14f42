"""BRACS regions of interest: 4,539 PNGs at 40x of seven classes of breast lesion.

Layout as released: `<version>/{train,val,test}/<number>_<class>/BRACS_<slide>_<class>_<n>.png`, as
read by `histocartography/hact-net` (`core/dataloader.py`); class and slide are in the file name.
Patients are in `BRACS.xlsx`, sheet `WSI_Information` (`WSI Filename`, `Patient Id`, `RoI`, `WSI
label`, `Set`), in the folder or up to two levels above. Without it, each slide counts as a patient.

As the regions differ in size, they are treated as small slides of 0.25 µm/px that are tiled, and a
region is a bag (`level: slide`).
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from stainssl.datasets.release import FolderContents, Options, Release, column, find_files, safe_id
from stainssl.datasets.validate import listed
from stainssl.datasets.xlsx import read_xlsx
from stainssl.errors import StainsslError

GROUPS = {
    "N": "benign", "PB": "benign", "UDH": "benign",
    "FEA": "atypical", "ADH": "atypical", "DCIS": "malignant", "IC": "malignant",
}  # fmt: skip
"""Class → one of three groups."""
MPP = "0.25"  # µm/px at 40x
_NAME = re.compile(r"(?:BRACS_)?(\d+)_([A-Za-z]+)_(\d+)\.png", re.IGNORECASE)


def summary_path(root: Path, name: str) -> Path | None:
    """Find `BRACS.xlsx` in the folder or in one of the two above it; None if it is missing."""
    found = (folder / name for folder in (root, *root.absolute().parents[:2]))
    return next((path for path in found if path.is_file()), None)


def slide_table(path: Path) -> pd.DataFrame:
    """Read `slide` (BRACS_<n>), `patient`, `subtype` and `split` of all slides of the release.

    Raises:
        StainsslError: the file, its sheet or a column is missing.
    """
    raw = read_xlsx(path, sheet="WSI_Information")
    table = pd.DataFrame(
        {
            "slide": column(raw, "WSI Filename", path).str.removesuffix(".svs"),
            "patient": column(raw, "Patient Id", path),
            "subtype": column(raw, "WSI label", path).str.upper(),
            "split": column(raw, "Set", path).str.lower(),
        }
    )
    short = {"training": "train", "validation": "val", "testing": "test"}
    return table[table["slide"] != ""].replace({"split": short}).reset_index(drop=True)


def _row(path: str) -> dict[str, str]:
    """Columns of a region from its folder and file name; `slide` is "" for other names."""
    _, split, folder, name = path.split("/")
    match = _NAME.fullmatch(name)
    return {
        "slide_id": safe_id(name.rsplit(".", 1)[0]),
        "path": path,
        "split": split,
        "subtype": folder.rsplit("_", 1)[-1].upper(),
        "slide": f"BRACS_{match[1]}" if match else "",
        "said": match[2].upper() if match else "",
    }


def _patients(rows: pd.DataFrame, root: Path, options: Options) -> tuple[pd.Series, list[str]]:
    path = summary_path(root, options["summary"])
    if path is None:
        return rows["slide"], [
            f"{options['summary']} was not found, so each slide counts as a patient: "
            "patients with several slides may be in several splits"
        ]
    table = slide_table(path)
    found = rows["slide"].map(dict(zip(table["slide"], table["patient"], strict=True)))
    notes = [f"patients are read from {path.name}, column 'Patient Id'"]
    if found.isna().any():
        unknown = rows.loc[found.isna(), "slide"].drop_duplicates()
        notes.append(f"{len(unknown)} slides are not in {path.name}, each counts as a patient: "
                     f"{listed(unknown)}")  # fmt: skip
    return ("BRACS_patient_" + found).fillna(rows["slide"]).map(safe_id), notes


def _read(root: Path, options: Options) -> FolderContents:
    version = options["version"]
    files = find_files(root, f"{version}/*/*/*.png")
    if not files:
        raise StainsslError(
            f"{root}: no {version}/<split>/<class>/*.png: is this the folder above?"
        )
    rows = pd.DataFrame([_row(path) for path in files])
    problems = []
    if len(odd := rows[rows["said"] != rows["subtype"]]):
        problems.append(
            f"{len(odd)} names are not BRACS_<slide>_<class>_<n> with the class of their folder: "
            f"{listed(odd['path'])}"
        )
    rows["patient_id"], notes = _patients(rows, root, options)
    rows["group"] = rows["subtype"].map(GROUPS).fillna("")
    rows["mpp"] = MPP
    columns = ["slide_id", "patient_id", "path", "split", "mpp", "subtype", "group", "slide"]
    usable = rows[rows["slide"] != ""]
    return FolderContents(usable[columns], files, notes, problems)


RELEASE = Release(
    name="bracs-roi",
    title="BRACS regions of interest, seven classes of breast lesion",
    kind="slides",
    read=_read,
    options={"version": ("latest_version", "previous_version"), "summary": ("BRACS.xlsx",)},
    classes={
        "subtype": frozenset(GROUPS),
        "split": frozenset({"train", "val", "test"}),
    },
    published={
        "slides": 4539, "split=train": 3657, "split=val": 312, "split=test": 570,
        "subtype=N": 484, "subtype=PB": 836, "subtype=UDH": 517, "subtype=FEA": 756,
        "subtype=ADH": 507, "subtype=DCIS": 790, "subtype=IC": 649,
    },
)  # fmt: skip
