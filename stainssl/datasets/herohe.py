"""HEROHE: 360 training cases of invasive breast cancer as MIRAX slides, 144 HER2-positive.

`<case>.mrxs`, each with its data folder, and `HEROHE_HER2_STATUS.xlsx`. The counts, the name of the
table and the remark on case 325 (no tumour was scanned) are from the page of the challenge, as
copied in `econdesousa/econdesousa.github.io`, `HEROHE/Dataset.md`. The columns of the table are not
documented: by default the first is the case, and the status is the one with HER2 in its name, or
else the second.
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
    read_any_table,
    safe_id,
)
from stainssl.datasets.validate import listed

STATUS = {"positive": "1", "negative": "0", "pos": "1", "neg": "0"}
WITHOUT_TUMOUR = "325"


def _columns(table: pd.DataFrame, options: Options) -> tuple[str, str]:
    """Names of the columns of case and status: given as options, or guessed."""
    names = [str(name) for name in table]
    likely = [name for name in names[1:] if "her2" in name.lower().replace("-", "")]
    return options["case"] or names[0], options["label"] or (likely or names[1:] or names)[0]


def _incomplete(root: Path, files: list[str]) -> list[str]:
    """MIRAX slides without their data folder."""
    return [name for name in files if not (root / name).with_suffix("").is_dir()]


def _read(root: Path, options: Options) -> FolderContents:
    path = only_file(root, options["table"], "the table of HER2", root.absolute().parent)
    table = read_any_table(path)
    case_column, label_column = _columns(table, options)
    case = column(table, case_column, path).str.removesuffix(".mrxs")
    status = column(table, label_column, path)
    files = find_files(root, "**/*.mrxs")
    rows = pd.DataFrame(
        {
            "slide_id": case.map(safe_id),
            "patient_id": ("herohe_" + case).map(safe_id),
            "path": located(files, case, "{}.mrxs"),
            "her2": status.str.lower().map(STATUS).fillna(status),
            "exclude": (case == WITHOUT_TUMOUR).map({True: "true", False: ""}),
        }
    )
    notes = [f"cases are read from {path.name}, column {case_column!r}, HER2 from {label_column!r}"]
    if (case == WITHOUT_TUMOUR).any():
        notes.append(f"case {WITHOUT_TUMOUR} has no tumour on its slide and is excluded")
    if without := _incomplete(root, files):
        notes.append(
            f"{len(without)} .mrxs have no folder of the same name beside them: {listed(without)}"
        )
    return FolderContents(rows, files, notes)


RELEASE = Release(
    name="herohe",
    title="HEROHE, HER2 status from H&E",
    kind="slides",
    read=_read,
    options={"table": ("HEROHE_HER2_STATUS.xlsx",), "case": ("",), "label": ("",)},
    classes={"her2": frozenset({"0", "1"})},
    published={"slides": 360, "her2=1": 144, "her2=0": 216},
)
