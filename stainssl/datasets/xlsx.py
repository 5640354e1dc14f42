"""Read a sheet of an XLSX file, transitional or strict OOXML.

Strict files have other XML namespaces, and look empty to readers that know only the transitional
ones, such as openpyxl. Here, namespaces are ignored. Only values are read: no dates, formats or
formulas, which the tables of the releases do not have.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import pandas as pd
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from stainssl.errors import StainsslError

XlsxRow = tuple[int, dict[int, str]]  # row number from 1; column from 0 → text
MAX_COLUMNS = 16_384  # `XFD`, the last column of the format
MAX_PART_BYTES = 500_000_000  # uncompressed; three times a table of half a million slides
_FAULTS: tuple[Any, ...] = (
    zipfile.BadZipFile, KeyError, ParseError, DefusedXmlException, ValueError, IndexError,
    StopIteration, NotImplementedError,
)  # fmt: skip


def _named(element: Element, name: str) -> Iterator[Element]:
    return (found for found in element.iter() if str(found.tag).rsplit("}", 1)[-1] == name)


def _attribute(element: Element, name: str) -> str:
    """The value of an attribute by its name without namespace."""
    found = (v for key, v in element.attrib.items() if key.rsplit("}", 1)[-1] == name)
    return next(found, "")


def _text(element: Element) -> str:
    return "".join(found.text or "" for found in _named(element, "t"))


def _column_index(reference: str) -> int:
    """Column index of a cell reference: 0 for `A7`, 26 for `AA7`.

    Raises:
        ValueError: there is no column, or it is beyond the last one of the format.
    """
    letters = re.sub(r"[^A-Z]", "", reference.upper())
    index = 0
    for letter in letters[:4]:
        index = index * 26 + ord(letter) - ord("A") + 1
    if not 0 < index <= MAX_COLUMNS:
        raise ValueError(f"invalid cell reference {reference[:20]!r}")
    return index - 1


def _value(cell: Element, shared: list[str]) -> str:
    kind = cell.get("t", "")
    if kind == "inlineStr":
        return _text(cell)
    raw = next((found.text or "" for found in _named(cell, "v")), "")
    if kind == "s" and raw:
        return shared[int(raw)]
    return raw.removesuffix(".0") if kind in ("", "n") else raw


def _rows(sheet: Element, shared: list[str]) -> list[XlsxRow]:
    """The rows that are not empty. Only filled cells use memory, whatever their reference is."""
    rows: list[XlsxRow] = []
    number = 0
    for row in _named(sheet, "row"):
        number = int(row.get("r", number + 1))
        cells: dict[int, str] = {}
        for place, cell in enumerate(_named(row, "c")):
            reference = cell.get("r")
            index = _column_index(reference) if reference else place
            if value := _value(cell, shared).strip():
                cells[index] = value
        if cells:
            rows.append((number, cells))
    return rows


def _part(archive: zipfile.ZipFile, name: str) -> Element:
    size_bytes = archive.getinfo(name).file_size
    if size_bytes > MAX_PART_BYTES:
        raise ValueError(f"{name} unpacks to {size_bytes / 1e6:.0f} MB")
    root: Element = fromstring(archive.read(name))
    return root


def _sheets(archive: zipfile.ZipFile) -> list[tuple[str, str]]:
    """(name, relationship id) of the sheets in their order."""
    found = _named(_part(archive, "xl/workbook.xml"), "sheet")
    return [(_attribute(sheet, "name"), _attribute(sheet, "id")) for sheet in found]


def _sheet_part(archive: zipfile.ZipFile, wanted: str | None, path: Path) -> str:
    """Name in the archive of the wanted sheet, or of the first."""
    sheets = _sheets(archive)
    found = next((key for name, key in sheets if wanted in (None, name)), None)
    if found is None:
        names = ", ".join(name for name, _ in sheets)
        raise StainsslError(f"{path} has no sheet {wanted!r}; found: {names}.")
    relations = _named(_part(archive, "xl/_rels/workbook.xml.rels"), "Relationship")
    target = next(r.get("Target", "") for r in relations if r.get("Id") == found)
    return target.lstrip("/") if target.startswith("/") else str(PurePosixPath("xl") / target)


def _cells(path: Path, sheet: str | None) -> list[XlsxRow]:
    with zipfile.ZipFile(path) as archive:
        shared: list[str] = []
        if "xl/sharedStrings.xml" in archive.namelist():
            strings = _named(_part(archive, "xl/sharedStrings.xml"), "si")
            shared = [_text(element) for element in strings]
        return _rows(_part(archive, _sheet_part(archive, sheet, path)), shared)


def _header(rows: list[XlsxRow]) -> dict[int, str]:
    """Column → name: the lowest filled cell of the header rows."""
    names: dict[int, str] = {}
    for _, cells in rows:
        names |= cells
    return dict(sorted(names.items()))


def _headers_above(rows: list[XlsxRow], first: str) -> int:
    """Number of rows above the first one whose first cell matches a pattern."""
    place = (i for i, (_, cells) in enumerate(rows) if re.fullmatch(first, cells.get(0, "")))
    return next(place, len(rows))


def read_rows(path: Path, sheet: str | None = None) -> list[XlsxRow]:
    """Read the filled cells of a sheet.

    Args:
        path: the XLSX file.
        sheet: name of the sheet; None: the first.

    Returns:
        (row number from 1, column from 0 → text) of each row that is not empty.

    Raises:
        FileNotFoundError: the file does not exist.
        StainsslError: the file is not an XLSX, or has no such sheet.
    """
    try:
        return _cells(path, sheet)
    except _FAULTS as error:
        raise StainsslError(f"{path} is not an XLSX file ({error}): fetch it again.") from error


def sheet_names(path: Path) -> list[str]:
    """Names of the sheets of a workbook in their order; for errors see `read_rows`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name for name, _ in _sheets(archive)]
    except _FAULTS as error:
        raise StainsslError(f"{path} is not an XLSX file ({error}): fetch it again.") from error


def read_xlsx(
    path: Path, sheet: str | None = None, headers: int = 1, first: str | None = None
) -> pd.DataFrame:
    """Read a sheet as a table, all str, "" for empty cells, without empty rows.

    Args:
        path: the XLSX file.
        sheet: name of the sheet; None: the first.
        headers: number of header rows; a column's name is the lowest filled cell of these.
        first: instead of `headers`, a pattern that the first cell of the first data row matches.

    Raises:
        StainsslError: the file does not exist, is not an XLSX, has no such sheet, or no data.
    """
    try:
        rows = read_rows(path, sheet)
    except FileNotFoundError:
        raise StainsslError(f"{path} does not exist: it is part of the release.") from None
    headers = headers if first is None else _headers_above(rows, first)
    if len(rows) <= headers or not headers:
        raise StainsslError(f"{path}: no rows below the {headers} header row(s).")
    names = _header(rows[:headers])
    data = [[cells.get(i, "") for i in names] for _, cells in rows[headers:]]
    return pd.DataFrame(data, columns=list(names.values()))
