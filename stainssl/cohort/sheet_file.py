"""Read the file of a sheet, in the encodings, separators and column names of laboratories."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stainssl.config import folded, nearest
from stainssl.errors import StainsslError
from stainssl.evaluation.labels import unknown_cells

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
INVISIBLE = "\ufeff\u200b\u200e\u200f"
WORDS = ("slide_id", "patient_id", "path", "site", "split", "exclude")  # columns without numbers
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")


@dataclass(frozen=True)
class SheetFile:
    """The rows of a sheet before they are validated.

    Attributes:
        rows: all str, trimmed, "" for empty cells; the index is the line in the file.
        notes: changes made when the file was read, one message each.
    """

    rows: pd.DataFrame
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Cells:
    """The table in the file: header, and (line, cells) of each row."""

    header: list[str]
    rows: list[tuple[int, list[str]]]
    notes: list[str]


def trimmed(cell: str) -> str:
    """Remove leading and trailing white space and invisible characters."""
    return cell.strip().strip(INVISIBLE).strip()


def _composed(cell: str) -> str:
    """Normalize accented letters to NFC, since NFC and NFD look alike."""
    return cell if cell.isascii() else unicodedata.normalize("NFC", cell)


# --- text -------------------------------------------------------------------------------------


def _encoding(raw: bytes) -> str | None:
    """The encoding by a byte order mark, or UTF-16 by its zero bytes; else None."""
    marked = next((name for mark, name in ENCODINGS.items() if raw.startswith(mark)), None)
    if marked or not raw:
        return marked
    start = raw[:1000]
    if start[1::2].count(0) > len(start) // 4:
        return "utf-16-le"
    return "utf-16-be" if start[0::2].count(0) > len(start) // 4 else None


def decoded(raw: bytes) -> tuple[str, list[str]]:
    """Decode UTF-8, UTF-16 or Windows-1252; returns the text, and a note in the last case.

    Raises:
        UnicodeDecodeError: the encoding is none of these.
    """
    known = _encoding(raw)
    if known:
        return raw.decode(known), []
    try:
        return raw.decode("utf-8"), []
    except UnicodeDecodeError:
        return raw.decode("cp1252"), ["it is not UTF-8 and was read as Windows-1252"]


def _separator(header: str, known: Iterable[str]) -> str:
    """The separator that gives the most known names in the header, then the most cells."""
    names = {folded(name) for name in known}

    def score(separator: str) -> tuple[int, int]:
        cells = next(csv.reader([header], delimiter=separator), [])
        return sum(folded(cell) in names for cell in cells), len(cells)

    return max(SEPARATORS, key=score)


def _numbered(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of each row; the first line if a row spans several."""
    reader, line = (
        csv.reader(
            io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
        ),
        0,
    )
    for cells in reader:
        yield line + 1, [trimmed(cell) for cell in cells]
        line = reader.line_num


def _text_cells(path: Path, known: Iterable[str]) -> _Cells:
    text, notes = decoded(path.read_bytes())
    first, _, rest = text.partition("\n")
    stated = re.fullmatch(r"\W?sep=(.)\s*", first)  # first line of a CSV by Excel
    header_line = rest.partition("\n")[0] if stated else first
    separator = stated[1] if stated else _separator(header_line, known)
    rows = [(n, cells) for n, cells in _numbered(text, separator) if any(cells)]
    rows = rows[1:] if stated else rows
    if not rows:
        raise StainsslError("it is empty")
    return _Cells(rows[0][1], rows[1:], notes)


def _xlsx_cells(path: Path) -> _Cells:
    from stainssl.datasets.xlsx import read_rows, sheet_names

    rows, names = read_rows(path), sheet_names(path)
    if not rows:
        raise StainsslError(f"its first sheet {names[0]!r} is empty")
    places = sorted(rows[0][1])  # only columns with a header
    listed = [(n, [trimmed(cells.get(i, "")) for i in places]) for n, cells in rows]
    others = ", ".join(map(repr, names[1:]))
    notes = [f"its first sheet {names[0]!r} was read, not {others}"] if others else []
    return _Cells(listed[0][1], listed[1:], notes)


# --- columns ----------------------------------------------------------------------------------


def _absent(columns: Mapping[str, str | None], header: Sequence[str]) -> Iterator[str]:
    for ours, theirs in columns.items():
        if theirs is not None and theirs not in header:
            yield f"columns: {ours!r} is read from {theirs!r}, which is not a column" + nearest(
                theirs, list(header)
            )


def _twice(header: Sequence[str], what: str) -> Iterator[str]:
    for name, count in Counter(name for name in header if name).items():
        if count > 1:
            places = ", ".join(str(i) for i, found in enumerate(header, start=1) if found == name)
            yield f"{what} {name!r} occurs {count} times (columns {places}): keep or rename one"


def _lookalikes(names: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    """Columns whose names differ from known ones only in case, spaces or underscores."""
    for name in names:
        ours = next((k for k in known if folded(k) == folded(name) and k != name), None)
        if ours is None:
            continue
        if ours in names:
            yield f"columns {ours!r} and {name!r} mean the same: rename or remove one"
        else:
            yield (
                f"column {name!r} is read as {ours!r} only on request: rename it, or set"
                f" columns: {{{ours}: {name!r}}} ({{{ours}: null}} if it is something else)"
            )


def _renamed(
    header: Sequence[str], columns: Mapping[str, str | None], known: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The name of each column after `columns` ("" if it is not read), and all problems."""
    given = {theirs: ours for ours, theirs in columns.items() if theirs is not None}
    unread = {ours for ours, theirs in columns.items() if theirs is None}
    names = ["" if n in unread and n not in given else given.get(n, n) for n in header]
    problems = [*_absent(columns, header), *_twice(header, "column")]
    if not problems:
        problems += _twice(names, "after 'columns', the name")
    candidates = [n for n in names if n and n not in columns]
    asked = [k for k in known if k not in unread]
    return names, problems + list(_lookalikes([*candidates, *given.values()], asked))


def _also_missing(names: Sequence[str], required: Sequence[str]) -> Iterator[str]:
    """Required columns that are missing, unless there is one with a similar name."""
    alike = {folded(name) for name in names}
    missing = [name for name in required if folded(name) not in alike]
    if missing:
        found = ", ".join(name for name in names if name)
        yield f"required columns are missing: {', '.join(missing)}; found: {found}"


def _too_long(cells: _Cells) -> Iterator[str]:
    """Rows longer than the header: an unquoted separator in a cell shifts all cells after it."""
    width = len(cells.header)
    longer = [(n, len(row)) for n, row in cells.rows if any(row[width:])]
    if longer:
        lines = shown([str(n) for n, _ in longer])
        yield (
            f"line(s) {lines} have more cells than the header ({longer[0][1]}, not {width}):"
            " quote cells that contain the separator"
        )


def shown(words: Sequence[str], most: int = 5) -> str:
    """The first `most` words, with the total number if there are more."""
    more = f" … ({len(words)} in all)" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def decimal_points(column: pd.Series) -> pd.Series | None:
    """Replace decimal commas by points in a column of numbers; None for any other column.

    Unknown cells do not count. 1,234 may be a thousand or a fraction: a column with only such
    numbers is not changed.
    """
    found = pd.Series(column.unique(), dtype=object)
    known = found[~unknown_cells(found)].astype(str)
    commas = known[known.str.fullmatch(DECIMAL_COMMA)]
    if not len(commas) or commas.str.fullmatch(THOUSANDS).all():
        return None
    if not known.str.fullmatch(NUMBER).all():
        return None
    return column.where(~column.isin(known), column.str.replace(",", ".", regex=False))


def _with_points(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    for name in frame.columns:
        changed = None if name in WORDS else decimal_points(frame[name])
        if changed is not None:
            frame[name] = changed
            notes.append(f"decimal commas in column {name!r} are read as points")
    return frame


def _frame(cells: _Cells, names: Sequence[str]) -> pd.DataFrame:
    width = len(names)
    rows = [(row + [""] * width)[:width] for _, row in cells.rows]
    frame = pd.DataFrame(rows, columns=range(width), index=[n for n, _ in cells.rows], dtype=str)
    frame = frame[[i for i, name in enumerate(names) if name]]
    frame.columns = pd.Index([name for name in names if name])
    for name in frame.columns.drop("path", errors="ignore"):  # paths must match the file system
        frame[name] = frame[name].map(_composed)
    return frame


def _unnamed(cells: _Cells) -> Iterator[str]:
    for i, name in enumerate(cells.header):
        if not name and any(len(row) > i and row[i] for _, row in cells.rows):
            yield f"column {i + 1} has no name and was not read"


READERS: dict[str, Callable[[Path], _Cells]] = {".xlsx": _xlsx_cells}


def _cells(path: Path, known: Iterable[str]) -> _Cells:
    try:
        if path.suffix.lower() in READERS:
            return READERS[path.suffix.lower()](path)
        return _text_cells(path, known)
    except FileNotFoundError:
        raise StainsslError(f"{path} does not exist.") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError, csv.Error) as error:
        raise StainsslError(
            f"{path} is not a table (CSV, with commas, semicolons or tabs, or XLSX): {error}."
        ) from None
    except StainsslError as error:
        raise StainsslError(f"{path}: {error}") from None


def read_sheet_file(
    path: Path,
    columns: Mapping[str, str | None],
    known: Sequence[str],
    labels: Iterable[str] = (),
    required: Sequence[str] = (),
) -> SheetFile:
    """Read a sheet: CSV with any usual separator and encoding, or XLSX (first sheet).

    Args:
        path: the file.
        columns: our name → name in the sheet, for columns with other names; None if a column with
            our name means something else and is not read.
        known: names of columns with a meaning.
        labels: further names that help to determine the separator.
        required: names of required columns; missing ones are reported only together with other
            problems.

    Raises:
        StainsslError: the file is missing or not a table, or all problems of its columns.
    """
    theirs = [name for name in columns.values() if name is not None]
    cells = _cells(path, [*known, *theirs, *labels])
    header = [_composed(name) for name in cells.header]
    given = {ours: None if name is None else _composed(name) for ours, name in columns.items()}
    names, problems = _renamed(header, given, known)
    problems += _too_long(cells)
    if problems:
        problems += _also_missing(names, required)
        raise StainsslError("\n".join(f"{path}: {problem}." for problem in problems))
    notes = [*cells.notes, *_unnamed(cells)]
    frame = _with_points(_frame(cells, names), notes)
    return SheetFile(frame, tuple(f"{path}: {note}." for note in notes))
