"""AMi-Br: 3,720 atypical or normal mitotic figures of human breast cancer from five sites.

Layout of `DeepMicroscopy/AMi-Br`: `AMI-BR.csv` (`slide`, `dataset`, `uid`, `x`, `y`,
`expert<n>_label`, `expert<n>_atypical`, `majority_atypical`) and `patches/{atypical,normal}/
<dataset>_<uid>.png`, 128 px with the mitotic figure in the centre. The slides are those of MIDOG
2021 and of the auxiliary mitosis data set of TUPAC16; there is one slide per case.

The table has no site. The labelled cases of MIDOG 2021 are numbered by scanner, fifty each. In
TUPAC16, cases 1 to 23 are named differently from 24 to 73 and come from another centre.
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
    read_text_table,
)
from stainssl.datasets.validate import listed
from stainssl.errors import StainsslError

SITES = {
    "MIDOG21": {"midog-xr": (1, 50), "midog-s360": (51, 100), "midog-cs2": (101, 150)},
    "TUPAC16": {"tupac-1-23": (1, 23), "tupac-24-73": (24, 73)},
}
"""Data set → site → first and last case number."""
EXPERTS = (1, 2, 3)
MPP = "0.25"  # µm/px, nominal for 40x of all scanners; the table has none
_FOLDERS = {"True": "atypical", "False": "normal"}


def _site(dataset: str, number: str) -> str:
    """The site of a case; "" if its number is not in the data set."""
    if not number.isdigit():
        return ""
    ranges = SITES.get(dataset, {}).items()
    return next((site for site, (low, high) in ranges if low <= int(number) <= high), "")


def _truths(table: pd.DataFrame, name: str, path: Path) -> pd.Series:
    """A column of `True` and `False` as str.

    Raises:
        StainsslError: the column has other values.
    """
    found = column(table, name, path)
    if len(strange := found[~found.isin(list(_FOLDERS))].unique()):
        raise StainsslError(
            f"{path}: {name} is {listed(strange)}: it must be True or False in every row."
        )
    return found


def _problems(rows: pd.DataFrame, files: list[str]) -> list[str]:
    """Contradictions between table and folders."""
    swapped = rows["atypical"].map({"0": "atypical", "1": "normal"})
    wrong = ("patches/" + swapped + "/" + rows["slide_id"] + ".png").isin(set(files))
    unknown = rows["site"] == ""
    outvoted = (rows["atypical_votes"].astype(int) >= 2) != (rows["atypical"] == "1")
    found = [
        (wrong, "slide_id", "patches are in a folder of another class than in the table"),
        (unknown, "patient_id", "patches are of cases with unknown site"),
        (outvoted, "slide_id", "patches have a majority that disagrees with the votes"),
    ]
    return [
        f"{int(bad.sum())} {what}: {listed(rows.loc[bad, key].drop_duplicates())}"
        for bad, key, what in found
        if bad.any()
    ]


def _read(root: Path, _options: Options) -> FolderContents:
    path = root / "AMI-BR.csv"
    table = read_text_table(path)
    dataset, slide = column(table, "dataset", path), column(table, "slide", path)
    majority = _truths(table, "majority_atypical", path)
    votes = [_truths(table, f"expert{n}_atypical", path) == "True" for n in EXPERTS]
    case = slide.str.extract(r"^(\d+)", expand=False).fillna(slide)
    patch = dataset + "_" + column(table, "uid", path)
    rows = pd.DataFrame(
        {
            "slide_id": patch,
            "patient_id": dataset + "_" + case,
            "path": "patches/" + majority.map(_FOLDERS) + "/" + patch + ".png",
            "site": [_site(*pair) for pair in zip(dataset, case, strict=True)],
            "mpp": MPP,
            "atypical": majority.map({"True": "1", "False": "0"}),
            "atypical_votes": pd.concat(votes, axis=1).sum(axis=1).astype(str),
            "slide": dataset + "_" + slide.str.rsplit(".", n=1).str[0],
        }
    )
    files = find_files(root, "patches/*/*.png")
    return FolderContents(
        rows, files, ["sites are derived from the case numbers"], _problems(rows, files)
    )


RELEASE = Release(
    name="amibr",
    title="AMi-Br, atypical and normal mitotic figures of breast cancer",
    kind="patches",
    read=_read,
    classes={"atypical": frozenset({"0", "1"})},
    # The paper counts 223 cases: 21 have no mitotic figure and therefore no row.
    published={"slides": 3720, "patients": 202, "atypical=1": 832, "atypical=0": 2888},
)
