"""The Yale HER2 cohort (TCIA collection HER2-TUMOR-ROIS): 192 slides, 93 positive and 99 negative.

`Her2Pos_Case_<n>.svs` and `Her2Neg_Case_<n>.svs`, with tumour outlines in an ImageScope XML of the
same name. HER2 is only in the file name. Names are as in public code on the collection (folders
`Yale_HER2_cohort/SVS_positive` and `Annotations`). Case numbers of the two groups overlap, so that
a patient is identified by group and number.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from stainssl.datasets.release import FolderContents, Options, Release, absent, find_files, stem
from stainssl.datasets.validate import listed
from stainssl.errors import StainsslError

_NAME = re.compile(r"Her2(Pos|Neg)_Case_0*(\d+)", re.IGNORECASE)


def _row(path: str, match: re.Match[str]) -> dict[str, str]:
    group = match[1].capitalize()
    return {
        "slide_id": stem(path),
        "patient_id": f"Her2{group}_{int(match[2]):03d}",
        "path": path,
        "site": "yale",
        "her2": "1" if group == "Pos" else "0",
    }


def _read(root: Path, options: Options) -> FolderContents:
    files = find_files(root, "**/*.svs")
    matches = [(path, _NAME.fullmatch(stem(path))) for path in files]
    rows = [_row(path, match) for path, match in matches if match]
    if not rows:
        raise StainsslError(f"{root}: no Her2Pos_Case_<n>.svs or Her2Neg_Case_<n>.svs below it.")
    table = pd.DataFrame(rows).sort_values("slide_id", kind="stable")
    return FolderContents(
        table.drop_duplicates("slide_id"), files, outline_notes(root, table, roi_pattern(options))
    )


def outline_notes(root: Path, rows: pd.DataFrame, pattern: str | None) -> list[str]:
    """Note on slides without outlines by `pattern`, to which tiles are limited; None: no limit."""
    if pattern is None:
        return []
    without = absent(root, pattern, rows["slide_id"].tolist())
    if not without:
        return []
    return [
        f"{len(without)} slides have no {pattern} and get no tile: {listed(without)} (option "
        "annotations names the folder; tiles: all uses the whole slide)"
    ]


def roi_pattern(options: Options) -> str | None:
    """Pattern of the outlines to which tiles are limited; None if the whole slide is tiled."""
    return f"{options['annotations']}/{{slide_id}}.xml" if options["tiles"] == "roi" else None


RELEASE = Release(
    name="her2-yale",
    title="Yale HER2 cohort, HER2 status by slide",
    kind="slides",
    read=_read,
    options={"tiles": ("roi", "all"), "annotations": ("Annotations",)},
    classes={"her2": frozenset({"0", "1"})},
    published={"slides": 192, "her2=1": 93, "her2=0": 99},
    regions=roi_pattern,
)
