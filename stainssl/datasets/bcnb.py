"""BCNB: core-needle biopsies of 1,058 patients as JPEG images, with partial tumour outlines.

`WSIs/<id>.jpg`, `WSIs/<id>.json` (`positive`: outlines as lists of vertices; `negative` is empty),
`patient-clinical-data.xlsx` (`Patient ID`, `HER2` and others with `Positive` and `Negative`), and
`dataset-splitting/{train,val,test}_id.txt`, as described in the repository `bupt-ai-cz/BALNMP` and
read by its `preprocessing/cut_tumor_regions.py`. Only part of the tumour is outlined, so that tiles
outside have no known label: the outlines limit where tiles are, and are not used as labels.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stainssl.datasets.her2_yale import outline_notes
from stainssl.datasets.release import (
    FolderContents,
    Options,
    Release,
    column,
    find_files,
    located,
    only_file,
    read_any_table,
    stem,
)

STATUS = {"positive": "1", "negative": "0"}
LABELS = {"her2": "HER2", "er": "ER", "pr": "PR"}
_FOLDERS = ("train", "val", "test")


def _regions(options: Options) -> str | None:
    return f"{options['annotations']}/{{slide_id}}.json" if options["tiles"] == "roi" else None


def _splits(root: Path) -> dict[str, str]:
    """Id → split by the lists of the release; empty if they are missing."""
    found: dict[str, str] = {}
    for split in _FOLDERS:
        for path in root.glob(f"**/dataset-splitting/{split}_id.txt"):
            found |= dict.fromkeys(path.read_text(encoding="utf-8").split(), split)
    return found


def _read(root: Path, options: Options) -> FolderContents:
    path = only_file(root, options["table"], "the clinical table", root.absolute().parent)
    raw = read_any_table(path)
    patient = column(raw, options["patient"], path)
    files = [name for name in find_files(root, "**/*.jpg") if stem(name).isdigit()]
    rows = pd.DataFrame(
        {
            "slide_id": patient,
            "patient_id": "bcnb_" + patient,
            "path": located(files, patient, "WSIs/{}.jpg"),
            "mpp": options["mpp"],
        }
    )
    for label, name in LABELS.items():
        values = column(raw, name, path)
        rows[label] = values.str.lower().map(STATUS).fillna(values)
    if splits := _splits(root):
        rows["split"] = patient.map(splits).fillna("")
    notes = [f"the images do not state their scale: {options['mpp']} µm/px is used (option mpp)"]
    return FolderContents(rows, files, [*notes, *outline_notes(root, rows, _regions(options))])


RELEASE = Release(
    name="bcnb",
    title="BCNB, receptors in core-needle biopsies",
    kind="slides",
    read=_read,
    options={
        "tiles": ("roi", "all"),
        "annotations": ("WSIs",),
        "table": ("patient-clinical-data.xlsx",),
        "patient": ("Patient ID",),
        "mpp": ("0.5",),
    },
    classes=dict.fromkeys(LABELS, frozenset({"0", "1"})),
    published={"slides": 1058, "patients": 1058},
    regions=_regions,
)
