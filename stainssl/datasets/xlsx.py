"""Reads a sheet of an XLSX file, transitional or strict.

The two differ in their XML namespaces, and the common readers for pandas know the transitional ones
only: a strict file looks empty to them. This takes element names without their namespace. Values
only: no dates, formats or formulas, which the releases' tables do not have.
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


def _named(element: Element, name: str) -> Iterator[Element]:
    return (found for found in element.iter() if str(found.tag).rsplit("}", 1)[-1] == name)


def _attribute(element: Element, name: str) -> str:
    """An attribute by its name without namespace."""
    found = (v for key, v in element.attrib.items() if key.rsplit("}", 1)[-1] == name)
    return next(found, "")


def _text(element: Element) -> str:
    return "".join(found.text or "" for found in _named(element, "t"))


def _column_index(reference: str) -> int:
    """0 for `A7`, 26 for `AA7`."""
    letters = re.sub(r"[^A-Z]", "", reference.upper())
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - ord("A") + 1
    return index - 1


def _value(cell: Element, shared: list[str]) -> str:
    kind = cell.get("t", "")
    if kind == "inlineStr":
        return _text(cell)
    raw = next((found.text or "" for found in _named(cell, "v")), "")
    if kind == "s" and raw:
        return shared[int(raw)]
    return raw.removesuffix(".0") if kind in ("", "n") else raw


def _rows(sheet: Element, shared: list[str]) -> list[list[str]]:
    rows = []
    for row in _named(sheet, "row"):
        cells: dict[int, str] = {}
        for place, cell in enumerate(_named(row, "c")):
            reference = cell.get("r")
            cells[_column_index(reference) if reference else place] = _value(cell, shared).strip()
        rows.append([cells.get(i, "") for i in range(max(cells, default=-1) + 1)])
    return [row for row in rows if any(row)]


def _part(archive: zipfile.ZipFile, name: str) -> Element:
    root: Element = fromstring(archive.read(name))
    return root


def _sheet_part(archive: zipfile.ZipFile, wanted: str | None, path: Path) -> str:
    """The archive's name of a sheet: the one of that name, or the first."""
    sheets = [(_attribute(s, "name"), _attribute(s, "id")) for s in _named(
        _part(archive, "xl/workbook.xml"), "sheet")]  # fmt: skip
    found = next((key for name, key in sheets if wanted in (None, name)), None)
    if found is None:
        names = ", ".join(name for name, _ in sheets)
        raise StainsslError(f"{path} has no sheet {wanted!r}; found: {names}.")
    relations = _named(_part(archive, "xl/_rels/workbook.xml.rels"), "Relationship")
    target = next(r.get("Target", "") for r in relations if r.get("Id") == found)
    return target.lstrip("/") if target.startswith("/") else str(PurePosixPath("xl") / target)


def _cells(path: Path, sheet: str | None) -> list[list[str]]:
    with zipfile.ZipFile(path) as archive:
        shared: list[str] = []
        if "xl/sharedStrings.xml" in archive.namelist():
            strings = _named(_part(archive, "xl/sharedStrings.xml"), "si")
            shared = [_text(element) for element in strings]
        return _rows(_part(archive, _sheet_part(archive, sheet, path)), shared)


def _header(rows: list[list[str]]) -> list[str]:
    """Column names; of several header rows the lowest cell that is filled counts."""
    width = max(len(row) for row in rows)
    padded = [row + [""] * (width - len(row)) for row in rows]
    return [next((c for c in reversed(column) if c), "") for column in zip(*padded, strict=True)]


def _headers_above(rows: list[list[str]], first: str) -> int:
    """How many rows stand above the first whose first cell matches a pattern."""
    place = (i for i, row in enumerate(rows) if re.fullmatch(first, row[0] if row else ""))
    return next(place, len(rows))


def read_xlsx(
    path: Path, sheet: str | None = None, headers: int = 1, first: str | None = None
) -> pd.DataFrame:
    """A sheet as a table, all str, empty where nothing stands; empty rows are left out.

    Args:
        sheet: its name; None is the first.
        headers: rows above the data; where there are several, the lowest filled cell is the name.
        first: instead of `headers`: a pattern of the first cell of the data's first row.

    Raises:
        StainsslError: the file does not exist, is no XLSX, or has no such sheet.
    """
    faults: tuple[Any, ...] = (zipfile.BadZipFile, KeyError, ParseError, DefusedXmlException)
    try:
        rows = _cells(path, sheet)
    except FileNotFoundError:
        raise StainsslError(f"{path} does not exist: it is part of the release.") from None
    except (*faults, ValueError, IndexError, StopIteration) as error:
        raise StainsslError(f"{path} is not an XLSX file ({error}): fetch it again.") from error
    headers = headers if first is None else _headers_above(rows, first)
    if len(rows) <= headers or not headers:
        raise StainsslError(f"{path}: no rows below the {headers} header row(s).")
    names = _header(rows[:headers])
    data = [(row + [""] * len(names))[: len(names)] for row in rows[headers:]]
    kept = [i for i, name in enumerate(names) if name]
    return pd.DataFrame([[row[i] for i in kept] for row in data], columns=[names[i] for i in kept])
