"""Description of a public data set, and helpers shared by the release modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from stainssl.datasets.xlsx import read_xlsx
from stainssl.errors import StainsslError

Options = Mapping[str, str]


@dataclass(frozen=True)
class FolderContents:
    """What a release module found in a folder, before validation.

    Attributes:
        rows: a row per labelled file, in a fixed order, all str: the columns of a sheet, with
            `path` relative to the folder and labels "" if unknown. `exclude` is optional.
        files: image files found, relative to the folder, sorted.
        notes: what a user should know, e.g. which column was read.
        problems: errors in the folder that must be fixed.
    """

    rows: pd.DataFrame
    files: Sequence[str]
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Release:
    """A public data set as it is distributed.

    Attributes:
        name: its name in the config.
        title: description in one line.
        kind: `slides` or `patches`, as in the config.
        read: function that reads the folder, with options.
        options: key → allowed values, the first being the default; if there is only one, any text
            is allowed (a name of a column or file).
        classes: label column → classes of the release.
        published: published counts: `slides`, `patients`, `split=train`, `her2=1` etc.
        annotations: options → pattern with {slide_id} for annotation files that label tiles,
            relative to the folder; None: there are none.
        outlines: tile label → (annotation classes that make up the label, classes to cut out).
        regions: options → pattern with {slide_id} for outlines to which tiles are limited, relative
            to the folder; None: tiles may be anywhere.
    """

    name: str
    title: str
    kind: Literal["slides", "patches"]
    read: Callable[[Path, Options], FolderContents]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    classes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    published: Mapping[str, int] = field(default_factory=dict)
    annotations: Callable[[Options], str | None] = lambda options: None
    outlines: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    regions: Callable[[Options], str | None] = lambda options: None

    def chosen(self, options: Options) -> dict[str, str]:
        """All options with their values, given or default.

        Raises:
            ValueError: an option or its value is unknown.
        """
        for key, value in options.items():
            if key not in self.options:
                known = ", ".join(self.options) or "none"
                raise ValueError(f"release {self.name} has no option {key!r}; known: {known}")
            choices = self.options[key]
            if len(choices) > 1 and value not in choices:
                raise ValueError(f"option {key} is {value!r}; it takes {', '.join(choices)}")
        return {key: options.get(key, choices[0]) for key, choices in self.options.items()}


@dataclass(frozen=True, eq=False)
class Imported:
    """The folder of a release as a sheet, with messages.

    Attributes:
        sheet: see `FolderContents.rows`, with `exclude`.
        problems: errors in the folder or the release's tables that must be fixed.
        warnings: what is missing, duplicate or differs from the publication.
        notes: what a user should know about how the folder was read.
    """

    sheet: pd.DataFrame
    problems: list[str]
    warnings: list[str]
    notes: list[str]


def find_files(root: Path, *patterns: str) -> list[str]:
    """Find files below a folder by glob patterns: sorted POSIX paths relative to it, none hidden.

    Raises:
        StainsslError: the folder does not exist.
    """
    if not root.is_dir():
        raise StainsslError(f"{root} does not exist: is its disk mounted?")
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    relative = (path.relative_to(root) for path in found)
    return sorted(p.as_posix() for p in relative if not any(n.startswith(".") for n in p.parts))


def only_file(root: Path, pattern: str, what: str, *others: Path) -> Path:
    """Find the only file that matches in a folder or below it, or else in one of the others.

    Raises:
        StainsslError: no file matches, or more than one.
    """
    found = [root / name for name in find_files(root, pattern, f"**/{pattern}")]
    found = found or [path for folder in others for path in sorted(folder.glob(pattern))]
    if len(found) == 1:
        return found[0]
    listed = f"found {', '.join(map(str, found[:3]))}" if found else "none found"
    raise StainsslError(f"{root}: {what} ({pattern}) must be one file: {listed}.")


def read_text_table(
    path: Path, separator: str = ",", skip_rows: Sequence[int] = ()
) -> pd.DataFrame:
    """Read a CSV or TSV, all str, "" for empty cells.

    Args:
        path: the file.
        separator: separator of columns.
        skip_rows: line numbers from 0 that are neither header nor data.

    Raises:
        StainsslError: the file does not exist or is not a table.
    """
    try:
        return pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, skiprows=list(skip_rows)
        )
    except FileNotFoundError:
        raise StainsslError(
            f"{path} does not exist: it is part of the release and names its files."
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise StainsslError(f"{path} is not a table: {error}.") from None


def read_any_table(path: Path, headers: int = 1) -> pd.DataFrame:
    """Read an XLSX (first sheet), CSV, TSV or tab-separated TXT, all str.

    Raises:
        StainsslError: see `read_text_table` and `read_xlsx`.
    """
    if path.suffix.lower() in (".xlsx", ".xlsm"):
        return read_xlsx(path, headers=headers)
    return read_text_table(path, "," if path.suffix.lower() == ".csv" else "\t")


def _plain(name: object) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def column(table: pd.DataFrame, wanted: str, source: Path) -> pd.Series:
    """Find a column by name; case, spaces and punctuation are ignored, values are stripped.

    Raises:
        StainsslError: no column has the name, or more than one; the message lists all columns.
    """
    found = [name for name in table if _plain(name) == _plain(wanted)]
    if len(found) == 1:
        return table[found[0]].astype(str).str.strip()
    known = ", ".join(map(str, table.columns))
    what = "no column" if not found else f"{len(found)} columns named"
    raise StainsslError(f"{source}: {what} {wanted!r}; found: {known}. Name it as an option.")


def absent(root: Path, pattern: str, slide_ids: Sequence[str]) -> list[str]:
    """The slides without a file by a pattern with {slide_id}, relative to a folder."""
    return [s for s in slide_ids if not (root / pattern.format(slide_id=s)).is_file()]


def safe_id(text: str) -> str:
    """Make a text a valid id of a sheet: other characters become `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")


def stem(path: str) -> str:
    """File name without folders and the last suffix."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def located(files: Iterable[str], stems: Iterable[str], otherwise: str) -> list[str]:
    """Find the file of each stem; the first if there are several.

    Args:
        files: see `find_files`.
        stems: file names without folder and suffix.
        otherwise: pattern with {} for the path of a missing file.
    """
    where = {stem(name): name for name in reversed(list(files))}
    return [where.get(name, otherwise.format(name)) for name in stems]
