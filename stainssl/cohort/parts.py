"""The parts of a cohort, and those that an encoder is trained on."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import pandas as pd

from stainssl.cohort.sheet import (
    ALL,
    PART,
    SCANNER_WORDS,
    SheetState,
    read_sheet,
    sheet_state,
    validated_sheet,
)
from stainssl.config import Config, Encoder
from stainssl.errors import StainsslError


def parts(config: Config, name: str) -> dict[str, pd.DataFrame]:
    """The parts of a cohort in sheet order: name → rows as in `read_sheet`."""
    found = _grouped(sheet_state(config, name))
    return {part: rows.copy(deep=False) for part, rows in found.items()}


def part_names(config: Config, name: str) -> list[str]:
    """The names of a cohort's parts in sheet order."""
    return list(_grouped(sheet_state(config, name)))


def part_rows(config: Config, name: str, part: str) -> pd.DataFrame:
    """The rows of one part, as in `read_sheet`; they are cached and must not be changed."""
    return _grouped(sheet_state(config, name))[part]


@lru_cache(maxsize=32)
def _grouped(asked: SheetState) -> dict[str, pd.DataFrame]:
    """Part → rows, cached: each of thousands of jobs is planned from the rows of a part."""
    return {str(part): rows for part, rows in validated_sheet(asked).groupby(PART, sort=False)}


def site_columns(columns: Iterable[str]) -> list[str]:
    """The columns of a sheet that describe where a slide was made: site and scanner."""
    return [c for c in columns if c == "site" or any(w in c.lower() for w in SCANNER_WORDS)]


def train_parts(config: Config, encoder: Encoder) -> list[tuple[str, str]]:
    """The (cohort, part) pairs that an encoder is trained on.

    Raises:
        StainsslError: a split of `train.splits` has no slide in any of `train.cohorts`.
    """
    if encoder.train is None:
        return []
    rows = pd.concat([read_sheet(config, c).assign(cohort=c) for c in encoder.train.cohorts])
    split = rows["split"].replace("", ALL)
    if absent := sorted(set(encoder.train.splits) - set(split)):
        raise StainsslError(
            f"train.splits {absent}: {', '.join(encoder.train.cohorts)} has no slide in it;"
            f" splits found: {', '.join(sorted(set(split)))}."
        )
    wanted = rows[split.isin(encoder.train.splits)]
    return list(wanted[["cohort", PART]].drop_duplicates().itertuples(index=False, name=None))
