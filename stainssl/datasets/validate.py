"""Validate a release: missing files, duplicates, patients in two splits, unexpected counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from stainssl.datasets.release import FolderContents, Imported, Release

SHOWN = 5  # names listed in a message before the rest is counted
STRICTEST = ("test", "val", "train")  # a patient in several splits stays in the first of these


def listed(names: Iterable[object], shown: int = SHOWN) -> str:
    """The first names, and the number of the others."""
    every = [str(name) for name in names]
    rest = len(every) - shown
    return ", ".join(every[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _without_twins(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Drop duplicate rows; rows with the same `slide_id` that differ are a problem."""
    same = rows.duplicated()
    kept = rows[~same]
    warnings = []
    if same.any():
        which = listed(dict.fromkeys(rows.loc[same, "slide_id"]))
        warnings.append(f"{int(same.sum())} rows are duplicates and count once: {which}")
    clash = kept["slide_id"].duplicated(keep=False)
    if not clash.any():
        return kept.reset_index(drop=True), [], warnings
    clashing = kept.loc[clash, "slide_id"].drop_duplicates()
    problem = f"{len(clashing)} names have rows that differ: {listed(clashing)}. Keep one of each"
    return kept.drop_duplicates("slide_id").reset_index(drop=True), [problem], warnings


def _double_files(files: list[str], used: set[str]) -> list[str]:
    """Warning on files with the same name in several folders, of which one is read."""
    by_name: dict[str, list[str]] = {}
    for path in files:
        by_name.setdefault(path.rsplit("/", 1)[-1], []).append(path)
    double = [p for p in by_name.values() if len(p) > 1 and not set(p) <= used]
    if not double:
        return []
    shown = listed(" = ".join(paths) for paths in double)
    return [f"{len(double)} files are in several folders, one is read: {shown}"]


def _match(rows: pd.DataFrame, files: list[str]) -> tuple[pd.Series, list[str]]:
    """Match rows and files: a mask of rows without file, and warnings on both sides."""
    used, there = set(rows["path"]), set(files)
    gone = ~rows["path"].isin(there)
    warnings = _double_files(files, used)
    if gone.any():
        warnings.append(
            f"{int(gone.sum())} of {len(rows)} labelled files are missing (a partial download?)"
            f" and are excluded: {listed(rows.loc[gone, 'path'])}"
        )
    if stray := sorted(there - used):
        warnings.append(f"{len(stray)} files have no label and are left out: {listed(stray)}")
    return gone, warnings


def _torn_patients(rows: pd.DataFrame) -> tuple[pd.Series, list[str]]:
    """Mask of rows to exclude since their patient is in a stricter split too, and warnings."""
    none = pd.Series(False, index=rows.index)
    if "split" not in rows:
        return none, []
    rank = rows["split"].map({split: i for i, split in enumerate(STRICTEST)})
    torn = rows.groupby("patient_id")["split"].transform("nunique") > 1
    if not torn.any():
        return none, []
    lowest = rank.groupby(rows["patient_id"]).transform("min")
    out = torn & (rank != lowest)
    who = rows.loc[torn, "patient_id"].drop_duplicates()
    return out, [
        f"{len(who)} patients are in several splits of the release: {listed(who)}. They stay"
        f" in test (otherwise validation), and {int(out.sum())} rows elsewhere are excluded"
    ]


def _strange_classes(release: Release, rows: pd.DataFrame) -> Iterator[str]:
    for label, classes in release.classes.items():
        found = set(rows[label]) - classes - {""}
        if strange := sorted(found):
            which = rows.loc[rows[label].isin(strange), "slide_id"]
            yield (
                f"label {label!r} has classes that are not in the release: {', '.join(strange)} "
                f"({listed(which)}); known: {', '.join(sorted(classes))}"
            )


def counts(rows: pd.DataFrame, wanted: Iterable[str]) -> dict[str, int]:
    """Counts of `slides`, `patients`, or rows with a value in a column (`split=test`)."""
    found = {}
    for what in wanted:
        name, _, value = what.partition("=")
        if name == "patients":
            found[what] = rows["patient_id"].nunique()
        else:
            found[what] = int((rows[name] == value).sum()) if value else len(rows)
    return found


def _against_published(release: Release, rows: pd.DataFrame) -> list[str]:
    found = counts(rows, release.published)
    off = [f"{what} {n} of {release.published[what]}" for what, n in found.items()
           if n != release.published[what]]  # fmt: skip
    return [f"not the published counts: {'; '.join(off)}"] if off else []


def validated(release: Release, reading: FolderContents) -> Imported:
    """Validate what a release module found: unusable rows are excluded, not dropped.

    An excluded row keeps its position, so that completing a download moves no slide to another
    part. Only exact duplicates are dropped.
    """
    rows, problems, warnings = _without_twins(reading.rows.astype(str))
    gone, unmatched = _match(rows, list(reading.files))
    given = rows["exclude"] == "true" if "exclude" in rows else pd.Series(False, index=rows.index)
    torn, torn_sentences = _torn_patients(rows[~given])
    torn = torn.reindex(rows.index, fill_value=False)
    problems += [*reading.problems, *_strange_classes(release, rows)]
    published = _against_published(release, rows[~gone])
    if not len(rows) or gone.all():
        problems.append("no labelled file of the release was found: is this the right folder?")
    out = gone | torn | given
    sheet = rows.assign(exclude=out.map({True: "true", False: ""}))
    warnings += [*unmatched, *torn_sentences, *published]
    return Imported(sheet, problems, warnings, reading.notes)
