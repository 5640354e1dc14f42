"""IMPRESS: biopsies of 62 HER2-positive and 64 triple-negative patients before chemotherapy.

`HER2+_deid/<id>_HE.svs`, `TNBC_deid/<id>_HE.svs` (with an `_IHC.svs` for each, which is not read)
and `cohort_meta.xlsx`, in `huangzhii/IMPRESS` `meta/supp_2_cohort_meta.xlsx`: sheets `HER2+` and
`TNBC`, with `Unique ID` and `pCR` (`pCR (no-0, yes-1)` in the second). One or two rows above the
first number are headers.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stainssl.datasets.release import (
    FolderContents,
    Options,
    Release,
    column,
    find_files,
    located,
    only_file,
)
from stainssl.datasets.xlsx import read_xlsx
from stainssl.errors import StainsslError

SUBTYPES = {"HER2+": "her2", "TNBC": "tnbc"}
_FIRST = r"\d+"  # first cell of the first data row: ids are numbers


def _starting(table: pd.DataFrame, name: str, path: Path) -> str:
    """The only column with this name, apart from what is in brackets."""
    found = [c for c in table if str(c).split("(")[0].strip().lower() == name.lower()]
    if len(found) == 1:
        return str(found[0])
    listed = ", ".join(map(str, table.columns))
    raise StainsslError(f"{path}: {len(found)} columns {name!r}; found: {listed}.")


def _labels(path: Path, sheet: str, options: Options) -> pd.DataFrame:
    table = read_xlsx(path, sheet=sheet, first=_FIRST)
    label = _starting(table, options["label"], path)
    return pd.DataFrame(
        {
            "id": column(table, options["id"], path).str.zfill(3),
            "pcr": column(table, label, path),
            "subtype": SUBTYPES[sheet],
        }
    )


def _read(root: Path, options: Options) -> FolderContents:
    path = only_file(root, options["table"], "the table of patients", root.absolute().parent)
    labels = pd.concat([_labels(path, sheet, options) for sheet in SUBTYPES], ignore_index=True)
    files = find_files(root, "**/*_HE.svs")
    rows = pd.DataFrame(
        {
            "slide_id": labels["id"] + "_HE",
            "patient_id": "impress_" + labels["id"],
            "path": located(files, labels["id"] + "_HE", "{}.svs"),
            "site": "osu",
            "pcr": labels["pcr"],
            "subtype": labels["subtype"],
        }
    )
    notes = [f"pCR is read from {path.name}"]
    if other := len(find_files(root, "**/*_IHC.svs")):
        notes.append(f"{other} slides of immunohistochemistry are not read")
    return FolderContents(rows, files, notes)


RELEASE = Release(
    name="impress",
    title="IMPRESS, complete response to chemotherapy before surgery",
    kind="slides",
    read=_read,
    options={"table": ("*cohort_meta.xlsx",), "id": ("Unique ID",), "label": ("pCR",)},
    classes={"pcr": frozenset({"0", "1"}), "subtype": frozenset(SUBTYPES.values())},
    published={"slides": 126, "patients": 126, "pcr=1": 65, "pcr=0": 61},
)
