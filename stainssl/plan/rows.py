"""Rows of the sheets that jobs depend on."""

from __future__ import annotations

from functools import lru_cache

import pandas as pd

from stainssl.cohort import PART, part_names, part_rows
from stainssl.cohort.sheet import SheetState, sheet_state, validated_sheet
from stainssl.config import Config

Part = tuple[str, str]  # cohort, part


def columns_of(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Select columns of a sheet's rows, in the given order; missing columns are left out."""
    return rows[[name for name in dict.fromkeys(names) if name in rows]].reset_index(drop=True)


def part_columns(config: Config, cohort: str, part: str, *names: str) -> pd.DataFrame:
    """Select columns of the rows of one part; see `columns_of`."""
    return _columns_of_parts(sheet_state(config, cohort), names)[part].copy(deep=False)


@lru_cache(maxsize=64)
def _columns_of_parts(asked: SheetState, names: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """Part → columns of its rows, selected once per sheet instead of by thousands of jobs."""
    rows = validated_sheet(asked)
    grouped = columns_of(rows, *names).groupby(rows[PART].to_numpy(), sort=False)
    return {str(part): own.reset_index(drop=True) for part, own in grouped}


def parts_of(config: Config, cohorts: list[str]) -> list[Part]:
    """List the parts of the given cohorts."""
    return [(cohort, part) for cohort in cohorts for part in part_names(config, cohort)]


def rows_of(config: Config, found: list[Part], *columns: str) -> pd.DataFrame:
    """Rows of the given parts with `cohort`, `part` and the given columns, cohort by cohort."""
    states = tuple(sheet_state(config, cohort) for cohort in dict.fromkeys(c for c, _ in found))
    return _rows_of(states, tuple(found), columns).copy(deep=False)


@lru_cache(maxsize=64)
def _rows_of(
    states: tuple[SheetState, ...], found: tuple[Part, ...], columns: tuple[str, ...]
) -> pd.DataFrame:
    """Cached rows of `rows_of`: the jobs of all encoders and heads of a task share them."""
    frames = []
    for state in states:
        own = [part_rows(state.config, c, part) for c, part in found if c == state.name]
        rows = pd.concat(own)
        rows = rows.assign(cohort=state.name, part=rows[PART])
        frames.append(columns_of(rows, "cohort", "part", *columns))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
