"""TCGA-BRCA slides with HER2 from the clinical table, as an external cohort for HER2.

Slides named by barcode (`TCGA-<site>-<patient>-01Z-00-DX1….svs`, as by the GDC, in any folders) and
a label table: the GDC's `nationwidechildrens.org_clinical_patient_brca.txt` (three header rows:
names, old names, CDE ids; missing values are words in brackets), or any CSV, TSV or XLSX with a
column of barcodes. HER2 is `her2_status_by_ihc`, or `her2_fish_status` if that is equivocal; values
other than positive and negative are unknown. The site is the tissue source site of the barcode.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from stainssl.datasets.release import (
    FolderContents,
    Options,
    Release,
    column,
    find_files,
    only_file,
    read_any_table,
    read_text_table,
    safe_id,
    stem,
)
from stainssl.errors import StainsslError

_BARCODE = re.compile(r"(TCGA-([A-Z0-9]{2})-[A-Z0-9]{4})-(\d{2})[A-Z]-\d{2}-([A-Z]+)\w*", re.I)
STATUS = {"positive": "1", "negative": "0", "1": "1", "0": "0", "her2+": "1", "her2-": "0"}
CDE_ROWS = (1, 2)  # header rows with old names and CDE ids


def _table(path: Path) -> pd.DataFrame:
    if path.name.startswith("nationwidechildrens.org_clinical_patient"):
        return read_text_table(path, "\t", skip_rows=CDE_ROWS)
    return read_any_table(path)


def _status(values: pd.Series) -> pd.Series:
    return values.str.lower().map(STATUS).fillna("")


def her2_of(table: pd.DataFrame, path: Path, options: Options) -> pd.Series:
    """HER2 of each row (0, 1, "" if unknown): by the first column, or the second if equivocal."""
    first = column(table, options["label"], path)
    status = _status(first)
    try:
        second = _status(column(table, options["equivocal"], path))
    except StainsslError:  # optional in a user's own table
        return status
    return status.mask(first.str.lower() == "equivocal", second)


def _read(root: Path, options: Options) -> FolderContents:
    path = only_file(root, options["table"], "the label table", root.absolute().parent)
    table = _table(path)
    barcode = column(table, options["barcode"], path).str.upper().str.slice(0, 12)
    her2 = dict(zip(barcode, her2_of(table, path, options), strict=True))
    files = find_files(root, "**/TCGA-*.svs")
    matches = [(name, _BARCODE.match(stem(name))) for name in files]
    rows = pd.DataFrame(
        [
            {
                "slide_id": safe_id(stem(name)),
                "patient_id": match[1].upper(),
                "path": name,
                "site": match[2].upper(),
                "section": match[4].upper(),
                "her2": her2[match[1].upper()],
            }
            for name, match in matches
            if match and match[1].upper() in her2
        ],
        columns=["slide_id", "patient_id", "path", "site", "section", "her2"],
    )
    frozen = int((~rows["section"].str.startswith("DX")).sum())
    rows["exclude"] = rows["section"].str.startswith("DX").map({True: "", False: "true"})
    notes = [f"HER2 is read from {path.name}, column {options['label']!r}"]
    if frozen:
        notes.append(f"{frozen} slides are not diagnostic (DX) sections and are excluded")
    return FolderContents(rows, files, notes)


RELEASE = Release(
    name="tcga-her2",
    title="TCGA-BRCA, HER2 status, as an external test",
    kind="slides",
    read=_read,
    options={
        "table": ("nationwidechildrens.org_clinical_patient_brca.txt",),
        "barcode": ("bcr_patient_barcode",),
        "label": ("her2_status_by_ihc",),
        "equivocal": ("her2_fish_status",),
    },
    classes={"her2": frozenset({"0", "1"})},
)
