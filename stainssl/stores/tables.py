"""Parquet tables with a header: kind, schema, package version and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stainssl import __version__
from stainssl.errors import StainsslError
from stainssl.stores.atomic import replacing

SCHEMA = 1
_KEY = b"stainssl"


def header(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Create the header of a table or store: kind, schema, package version and settings."""
    return {"kind": kind, "schema": SCHEMA, "version": __version__, "settings": dict(settings)}


def check_header(found: Mapping[str, Any], kind: str, path: Path) -> None:
    """Check the kind and schema of a header.

    Raises:
        StainsslError: another kind or schema.
    """
    if found.get("kind") != kind or found.get("schema") != SCHEMA:
        raise StainsslError(
            f"{path}: expected {kind} of schema {SCHEMA}, found {found.get('kind', 'another')}"
            f" of schema {found.get('schema', '?')} (written by stainssl"
            f" {found.get('version', '?')}). Delete it and run again."
        )


def write_table(path: Path, frame: pd.DataFrame, kind: str, settings: Mapping[str, Any]) -> None:
    """Write `frame` as Parquet with a header, atomically.

    Args:
        path: file to write.
        frame: table; its index is not stored.
        kind: kind of table, such as `tiles`, `qc`, `labels`, `predictions` or `attention`, which
            `read_table` checks.
        settings: settings that determine the table; JSON types only.
    """
    table = pa.Table.from_pandas(frame, preserve_index=False)
    text = json.dumps(header(kind, settings), sort_keys=True, default=str)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: text.encode()})
    with replacing(path) as made:
        pq.write_table(table, made, compression="zstd")


def read_settings(path: Path, kind: str) -> dict[str, Any]:
    """Read the settings of a table without its rows.

    Raises:
        StainsslError: the file is not Parquet, of another kind or of another schema.
        FileNotFoundError: the file is missing.
    """
    try:
        found = json.loads((pq.read_schema(path).metadata or {}).get(_KEY, b"{}"))
    except pa.ArrowInvalid as error:
        raise StainsslError(f"{path} is incomplete ({error}). Delete it and run again.") from error
    check_header(found, kind, path)
    return dict(found["settings"])


def read_table(path: Path, kind: str) -> pd.DataFrame:
    """Read a table written by `write_table`.

    Raises:
        StainsslError: the file is missing, not Parquet, of another kind or of another schema.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise StainsslError(f"{path} is missing: the stage that makes it has not run.") from None
    except pa.ArrowInvalid as error:
        raise StainsslError(f"{path} is incomplete ({error}). Delete it and run again.") from error
    check_header(json.loads((table.schema.metadata or {}).get(_KEY, b"{}")), kind, path)
    return table.to_pandas()


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """Prefix text cells that a spreadsheet would evaluate as a formula with an apostrophe."""
    words = frame.select_dtypes(exclude=["number", "bool"]).columns
    starts = tuple("=+-@\t\r")

    def as_text(cell: object) -> object:
        return f"'{cell}" if isinstance(cell, str) and cell.startswith(starts) else cell

    return frame.assign(**{column: frame[column].map(as_text) for column in words})
