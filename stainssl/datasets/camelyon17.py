"""CAMELYON17, training part: 500 lymph-node slides of 100 patients from five centres.

`patient_<p>_node_<n>.tif` in any folders, `stage_labels.csv` (`patient`, `stage`; rows of patients
end in `.zip` and have a pN stage, rows of slides end in `.tif` and have one of four classes), and
lesion outlines in ASAP's XML for 50 slides. The centre is the patient number divided by 20, rounded
down, as in `p-lambda/wilds`, `dataset_preprocessing/camelyon17/generate_final_metadata.py`.

Tiles of slides labelled negative are normal, and tiles of slides with outlines are labelled by
these. Tiles of all other slides have no label: they are never taken as normal.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from stainssl.datasets.release import (
    FolderContents,
    Options,
    Release,
    absent,
    column,
    find_files,
    only_file,
    read_text_table,
    stem,
)

STAGES = ("negative", "itc", "micro", "macro")
PATIENTS_A_CENTRE = 20
_SLIDE = re.compile(r"patient_(\d+)_node_(\d+)")


def _pattern(options: Options) -> str:
    return f"{options['annotations']}/{{slide_id}}.xml"


def _slides(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of slides, with their class and the pN stage of their patient."""
    is_slide = table["name"].str.lower().str.endswith(".tif")
    stage_of = table[~is_slide].assign(name=table["name"].map(stem)).set_index("name")["stage"]
    rows = table[is_slide].assign(slide_id=table["name"].map(stem))
    rows["patient_id"] = rows["slide_id"].str.replace(r"_node_\d+$", "", regex=True)
    rows["pn_stage"] = rows["patient_id"].map(stage_of.to_dict()).fillna("")
    return rows


def _centre(slide_id: str) -> str:
    match = _SLIDE.fullmatch(slide_id)
    return f"centre-{int(match[1]) // PATIENTS_A_CENTRE}" if match else ""


def _notes(root: Path, rows: pd.DataFrame, options: Options) -> list[str]:
    positive = rows.loc[rows["stage"] != "negative", "slide_id"].tolist()
    unknown = absent(root, _pattern(options), positive)
    return [
        f"{len(positive) - len(unknown)} slides with tumour have outlines; the tiles of the "
        f"{len(unknown)} without have no label"
    ]


def _read(root: Path, options: Options) -> FolderContents:
    path = only_file(root, options["table"], "the table of stages")
    raw = read_text_table(path)
    table = pd.DataFrame(
        {"name": column(raw, "patient", path), "stage": column(raw, "stage", path)}
    )
    rows = _slides(table)
    files = find_files(root, "**/patient_*_node_*.tif")
    where = {name.rsplit("/", 1)[-1]: name for name in reversed(files)}
    sheet = pd.DataFrame(
        {
            "slide_id": rows["slide_id"],
            "patient_id": rows["patient_id"],
            "path": [where.get(name, name) for name in rows["name"]],
            "site": rows["slide_id"].map(_centre),
            "stage": rows["stage"].str.lower(),
            "tumor": (rows["stage"].str.lower() != "negative").astype(int).astype(str),
            "pn_stage": rows["pn_stage"],
        }
    ).reset_index(drop=True)
    return FolderContents(sheet, files, _notes(root, sheet, options))


RELEASE = Release(
    name="camelyon17",
    title="CAMELYON17, metastases in lymph-node slides of five centres",
    kind="slides",
    read=_read,
    options={"annotations": ("annotations",), "table": ("stage*.csv",)},
    classes={"stage": frozenset(STAGES)},
    published={"slides": 500, "patients": 100},
    annotations=_pattern,
    outlines={
        "tumor": (
            ("metastases", "tumor", "Tumor", "_0", "_1"),
            ("normal", "Normal", "_2", "Exclusion"),
        )
    },
)
