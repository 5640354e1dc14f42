"""BRACS whole slides: 547 slides of 189 patients, labelled by their most severe lesion.

`BRACS_<n>.svs` in folders by split, group and type, and `BRACS.xlsx`, sheet `WSI_Information` (`WSI
Filename`, `Patient Id`, `RoI`, `WSI label`, `Set`), with columns on which several public readers
agree. Labels and splits are those of the table, not of the folders.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stainssl.datasets.bracs_roi import GROUPS, slide_table, summary_path
from stainssl.datasets.release import FolderContents, Options, Release, find_files, located, safe_id
from stainssl.errors import StainsslError


def _read(root: Path, options: Options) -> FolderContents:
    path = summary_path(root, options["summary"])
    if path is None:
        raise StainsslError(
            f"{root}: no {options['summary']} there or in the two folders above: it has the labels."
        )
    table = slide_table(path)
    files = find_files(root, "**/BRACS_*.svs")
    rows = pd.DataFrame(
        {
            "slide_id": table["slide"].map(safe_id),
            "patient_id": ("BRACS_patient_" + table["patient"]).map(safe_id),
            "path": located(files, table["slide"], "{}.svs"),
            "split": table["split"],
            "subtype": table["subtype"],
            "group": table["subtype"].map(GROUPS).fillna(""),
        }
    )
    return FolderContents(rows, files, [f"labels, patients and splits are read from {path.name}"])


RELEASE = Release(
    name="bracs-wsi",
    title="BRACS whole slides, seven classes of breast lesion",
    kind="slides",
    read=_read,
    options={"summary": ("BRACS.xlsx",)},
    classes={"subtype": frozenset(GROUPS), "split": frozenset({"train", "val", "test"})},
    published={"slides": 547, "patients": 189},
)
