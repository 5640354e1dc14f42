"""Cohorts: their sheets, their parts, and the checks that are made before any job."""

from stainssl.cohort.checks import check, missing_files
from stainssl.cohort.parts import parts, site_columns, train_parts
from stainssl.cohort.sheet import (
    ALL,
    COLUMNS,
    SheetRow,
    read_sheet,
    release_warnings,
    root,
)

__all__ = [
    "ALL",
    "COLUMNS",
    "SheetRow",
    "check",
    "missing_files",
    "parts",
    "read_sheet",
    "release_warnings",
    "root",
    "site_columns",
    "train_parts",
]
