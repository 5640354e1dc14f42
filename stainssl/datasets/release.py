"""What a release module says of a public data set, and the few things that all of them do."""

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
    """What a module found in a folder, before it was validated.

    Attributes:
        rows: a row per labelled file, in a fixed order, all str: the columns of a sheet, with
            `path` relative to the folder and labels empty where unknown. `exclude` is optional.
        files: image files found, relative to the folder, sorted.
        notes: what a user must know: which column was read, what stands in for what.
        problems: what the folder must be fixed for.
    """

    rows: pd.DataFrame
    files: Sequence[str]
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Release:
    """A public data set as it is distributed.

    Attributes:
        name: what the config calls it.
        title: one line for people.
        kind: `slides` or `patches`, as in the config.
        read: folder and options → what is there.
        options: key → its values; the first is the default, and where it is alone any text is
            taken (the name of a column or of a file).
        classes: label column → the classes that the release has.
        published: what → how many the release's authors count: `slides`, `patients`,
            `split=train`, `her2=1` and the like.
        annotations: options → pattern with {slide_id} under the folder: outlines that label tiles;
            None: there are none.
        outlines: tile label → (classes of the outlines that have it, classes that are cut out).
        regions: options → pattern with {slide_id} under the folder: tiles stand inside these
            outlines only; None: anywhere.
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
        """Every option with its value.

        Raises:
            ValueError: an unknown option, or a value that it does not take.
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
    """A release's folder as a sheet, with what was found on the way.

    Attributes:
        sheet: as `FolderContents.rows`, with `exclude`.
        problems: sentences; the folder or the release's tables must be fixed first.
        warnings: sentences: what is missing, double or not as published.
        notes: sentences: what was read in a way of its own.
    """

    sheet: pd.DataFrame
    problems: list[str]
    warnings: list[str]
    notes: list[str]


def find_files(root: Path, *patterns: str) -> list[str]:
    """Paths below a folder that match, relative to it with `/`, sorted; hidden files are left out.

    Raises:
        StainsslError: there is no such folder.
    """
    if not root.is_dir():
        raise StainsslError(f"{root} does not exist: is its disk mounted?")
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    relative = (path.relative_to(root) for path in found)
    return sorted(p.as_posix() for p in relative if not any(n.startswith(".") for n in p.parts))


def only_file(root: Path, pattern: str, what: str, *others: Path) -> Path:
    """The one file that matches, in the folder or below it, else in one of the other folders.

    Raises:
        StainsslError: none does, or more than one.
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
    """A CSV or TSV, all str, empty where nothing stands.

    Args:
        skip_rows: line numbers, from 0, that are neither header nor data.

    Raises:
        StainsslError: it does not exist or is not such a table.
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
    """An XLSX (its first sheet), CSV, TSV or tab-separated TXT, all str.

    Raises:
        StainsslError: as `read_text_table` and `read_xlsx`.
    """
    if path.suffix.lower() in (".xlsx", ".xlsm"):
        return read_xlsx(path, headers=headers)
    return read_text_table(path, "," if path.suffix.lower() == ".csv" else "\t")


def _plain(name: object) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def column(table: pd.DataFrame, wanted: str, source: Path) -> pd.Series:
    """A column by name; case, spaces and punctuation do not matter.

    Raises:
        StainsslError: there is none, or two; the sentence names those found.
    """
    found = [name for name in table if _plain(name) == _plain(wanted)]
    if len(found) == 1:
        return table[found[0]].astype(str).str.strip()
    known = ", ".join(map(str, table.columns))
    what = "no column" if not found else f"{len(found)} columns named"
    raise StainsslError(f"{source}: {what} {wanted!r}; found: {known}. Name it as an option.")


def absent(root: Path, pattern: str, slide_ids: Sequence[str]) -> list[str]:
    """The slides that have no file of a pattern with {slide_id} under a folder."""
    return [s for s in slide_ids if not (root / pattern.format(slide_id=s)).is_file()]


def safe_id(text: str) -> str:
    """`text` as an id of a sheet: other characters become `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")


def stem(path: str) -> str:
    """The name of a file without folders and without its last suffix."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def located(files: Iterable[str], stems: Iterable[str], otherwise: str) -> list[str]:
    """The file of each stem, the first where several have it.

    Args:
        files: as `find_files` gives.
        stems: names without folder and suffix.
        otherwise: pattern with {} of where a file that is not there would be.
    """
    where = {stem(name): name for name in reversed(list(files))}
    return [where.get(name, otherwise.format(name)) for name in stems]
