"""`stainssl cohort import`: write the sheet of a release, a report, and lines for a config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from stainssl.datasets import RELEASES, find, load
from stainssl.datasets.release import Imported, Release
from stainssl.errors import StainsslError
from stainssl.stores.atomic import write_text


def _options(pairs: Sequence[str]) -> dict[str, str]:
    """Parse options given as `key=value`.

    Raises:
        StainsslError: a value without `=`.
    """
    if strange := [pair for pair in pairs if "=" not in pair]:
        raise StainsslError(f"--option {strange[0]!r}: write it as key=value.")
    return dict(pair.split("=", 1) for pair in pairs)


def _read(name: str, root: Path, options: dict[str, str]) -> Imported:
    if name not in RELEASES:
        raise StainsslError(f"No release is named {name!r}; known: {', '.join(RELEASES)}.")
    try:
        return load(name, root, options)
    except ValueError as error:
        raise StainsslError(f"--option: {error}.") from None


def _counts(label: str, rows: pd.DataFrame) -> str:
    found = rows[label].replace("", "unknown").value_counts().sort_index()
    return f"  {label}: " + ", ".join(f"{name} {count}" for name, count in found.items())


def summary(release: Release, found: Imported) -> Iterator[str]:
    """Yield lines on a sheet without excluded rows: slides, patients, labels, splits, messages."""
    used = found.sheet[found.sheet["exclude"] == ""]
    out = len(found.sheet) - len(used)
    yield f"{release.name}: {release.title}"
    yield f"  {len(used)} {release.kind} of {used['patient_id'].nunique()} patients, {out} excluded"
    shown = [name for name in ("site", "split") if name in used]
    for label in dict.fromkeys([*shown, *release.classes]):
        yield _counts(label, used)
    yield from (f"  note: {sentence}" for sentence in found.notes)
    yield from (f"  warning: {sentence}" for sentence in found.warnings)


def cohort_lines(release: Release, root: Path, options: dict[str, str], sheet: Path) -> str:
    """YAML of a cohort for the config that reads the written sheet."""
    cohort: dict[str, Any] = {"sheet": str(sheet), "root": str(root), "kind": release.kind}
    chosen = release.chosen(options)
    patterns = {"annotations": release.annotations(chosen), "regions": release.regions(chosen)}
    cohort |= {key: str(root / pattern) for key, pattern in patterns.items() if pattern}
    if release.outlines:
        cohort["outlines"] = {
            label: {"of": list(of), "without": list(without)}
            for label, (of, without) in release.outlines.items()
        }
    return yaml.safe_dump({"cohorts": {release.name: cohort}}, sort_keys=False).rstrip()


def run(name: str, root: Path, sheet: Path, pairs: Sequence[str]) -> Iterator[str]:
    """Write the sheet of a release, and yield the lines of a report.

    Args:
        name: a key of `RELEASES`.
        root: the folder of the release; paths in the sheet are relative to it.
        sheet: the CSV to write.
        pairs: options as `key=value`.

    Raises:
        StainsslError: unknown release or option, or all problems of the folder; nothing is written.
    """
    options = _options(pairs)
    found = _read(name, root, options)
    release = find(name)
    if found.problems:
        raise StainsslError("\n".join(f"{root}: {problem}." for problem in found.problems))
    write_text(sheet, found.sheet.to_csv(index=False))
    yield from summary(release, found)
    yield f"wrote {sheet}; the config takes it as"
    yield cohort_lines(release, root, options, sheet)
