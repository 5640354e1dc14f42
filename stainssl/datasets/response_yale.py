"""The Yale trastuzumab response cohort (TCIA, HER2-TUMOR-ROIS): 85 HER2-positive patients.

`Yale_trastuzumab_response_cohort_metadata_clean.xlsx` (strict OOXML) has `Patient` and `Responder`
(`responder` or `non-responder`; 36 responders), as read by public code on the collection, where a
slide is `<Patient>.svs`. The model of the paper was trained on 187 patients; these 85 are released.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stainssl.datasets.her2_yale import outline_notes, roi_pattern
from stainssl.datasets.release import (
    FolderContents,
    Options,
    Release,
    column,
    find_files,
    located,
    only_file,
    read_any_table,
    safe_id,
)

RESPONSE = {"responder": "1", "nonresponder": "0"}


def _response(value: str) -> str:
    """1, 0, or any other value unchanged, so that it is reported as an unexpected class."""
    plain = "".join(c for c in value.lower() if c.isalpha())
    return RESPONSE.get(plain, value)


def _read(root: Path, options: Options) -> FolderContents:
    path = only_file(root, options["table"], "the table of responses", root.absolute().parent)
    raw = read_any_table(path)
    patient = column(raw, options["patient"], path)
    response = column(raw, options["label"], path)
    files = find_files(root, "**/*.svs")
    rows = pd.DataFrame(
        {
            "slide_id": patient.map(safe_id),
            "patient_id": patient.map(safe_id),
            "path": located(files, patient, "{}.svs"),
            "site": "yale",
            "response": response.map(_response),
        }
    )
    rows = rows[patient != ""].reset_index(drop=True)
    notes = [f"responses are read from {path.name}, column {options['label']!r}"]
    return FolderContents(rows, files, [*notes, *outline_notes(root, rows, roi_pattern(options))])


RELEASE = Release(
    name="response-yale",
    title="Yale trastuzumab response cohort",
    kind="slides",
    read=_read,
    options={
        "tiles": ("roi", "all"),
        "annotations": ("Annotations",),
        "table": ("*metadata_clean.xlsx",),
        "patient": ("Patient",),
        "label": ("Responder",),
    },
    classes={"response": frozenset({"0", "1"})},
    published={"slides": 85, "patients": 85, "response=1": 36, "response=0": 49},
    regions=roi_pattern,
)
