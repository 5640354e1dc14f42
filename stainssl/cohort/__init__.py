"""Cohorts: sheets, parts, and the checks before any job starts."""

from stainssl.cohort.archive import dated_in_future
from stainssl.cohort.checks import (
    check,
    feature_warnings,
    missing_files,
    needed_files,
    outside_problems,
    sheet_report,
    task_summary,
)
from stainssl.cohort.outlines import read_outlines
from stainssl.cohort.parts import part_names, part_rows, parts, site_columns, train_parts
from stainssl.cohort.sheet import (
    ALL,
    COLUMNS,
    PART,
    SheetRow,
    read_sheet,
    root,
    sheet_notes,
)
from stainssl.cohort.stored import stored_pixels, why_not_stored

__all__ = [
    "ALL",
    "COLUMNS",
    "PART",
    "SheetRow",
    "check",
    "dated_in_future",
    "feature_warnings",
    "missing_files",
    "needed_files",
    "outside_problems",
    "part_names",
    "part_rows",
    "parts",
    "read_outlines",
    "read_sheet",
    "root",
    "sheet_notes",
    "sheet_report",
    "site_columns",
    "stored_pixels",
    "task_summary",
    "train_parts",
    "why_not_stored",
]
