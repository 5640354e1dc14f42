"""A cohort's sheet: read, judged row by row, and cut into parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from stainssl.config import NAME, Cohort, Config
from stainssl.errors import StainsslError
from stainssl.plan.paths import Paths

Id = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
ALL = "all"  # the split of a sheet that has none
TRUE = {"1", "true", "yes", "x"}
FALSE = {"", "0", "false", "no"}


class SheetRow(BaseModel):
    """A row of a sheet. Any further column is a label or a clinical column."""

    model_config = ConfigDict(extra="allow")

    slide_id: Id
    patient_id: Id
    path: Annotated[str, StringConstraints(min_length=1)]  # relative to the cohort's root
    site: str = ""  # where it was stained and scanned
    split: Annotated[str, StringConstraints(pattern=f"^({NAME})?$")] = ""
    mpp: Annotated[float, Field(gt=0)] | None = None  # µm/px at level 0; wins over the slide's own
    exclude: bool = False


SCANNER_WORDS = ("scanner", "vendor")  # columns that tell of a slide's making, as its site does
OPTIONAL = ("site", "split", "mpp", "exclude")
REQUIRED = ("slide_id", "patient_id", "path")
COLUMNS = (*REQUIRED, *OPTIONAL)


def _raw_sheet(config: Config, name: str) -> pd.DataFrame:
    cohort = config.cohorts[name]
    if cohort.demo is not None:
        from stainssl.demo import sheet

        return sheet(cohort.demo.seed, cohort.demo.patients).astype(str)
    if cohort.release is not None:
        return _release_sheet(cohort, name)
    assert cohort.sheet is not None
    try:
        return pd.read_csv(cohort.sheet, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError:
        raise StainsslError(f"cohorts.{name}.sheet: {cohort.sheet} does not exist.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise StainsslError(f"cohorts.{name}.sheet: {cohort.sheet} is not a CSV: {error}") from None


def _release_sheet(cohort: Cohort, name: str) -> pd.DataFrame:
    """The sheet that a release's own tables and file names make.

    Raises:
        StainsslError: every problem of its folder, a line each.
    """
    from stainssl.datasets import load

    assert cohort.release is not None
    found = load(cohort.release, cohort.root, cohort.options)
    if found.problems:
        where = f"cohorts.{name} (release {cohort.release})"
        raise StainsslError("\n".join(f"{where}: {problem}" for problem in found.problems))
    return found.sheet


def release_warnings(config: Config, name: str) -> list[str]:
    """What is missing of a release's folder or not as published; none for another cohort."""
    from stainssl.datasets import load

    cohort = config.cohorts[name]
    if cohort.release is None:
        return []
    return load(cohort.release, cohort.root, cohort.options).warnings


def source_of(config: Config, name: str) -> str:
    cohort = config.cohorts[name]
    if cohort.release:
        return f"release {cohort.release}"
    return str(cohort.sheet) if cohort.sheet else f"cohort {name}"


def _row_problems(frame: pd.DataFrame, source: str) -> Iterator[str]:
    """Sentences about rows that are not valid; line numbers as an editor shows them."""
    given = [column for column in COLUMNS if column in frame]
    for line, row in enumerate(frame[given].to_dict("records"), start=2):
        flag = str(row.get("exclude", "")).strip().lower()
        if flag not in TRUE | FALSE:
            yield f"{source}, line {line}: exclude is {flag!r}: write true or false, or nothing."
        values = {
            str(k): v for k, v in row.items() if k != "exclude" and (v != "" or k in REQUIRED)
        }
        try:
            SheetRow.model_validate(values)
        except ValidationError as error:
            yield from (_row_sentence(found, source, line) for found in error.errors())


def _row_sentence(found: object, source: str, line: int) -> str:
    assert isinstance(found, dict)
    column, value = found["loc"][-1], found["input"]
    if found["type"] == "string_pattern_mismatch":
        wanted = "may hold letters, digits, '.', '_' and '-', and starts with a letter or a digit"
    else:
        wanted = found["msg"]
    return f"{source}, line {line}: {column} is {value!r}: it {wanted}."


def _duplicates(frame: pd.DataFrame, source: str) -> Iterator[str]:
    twice = frame[frame["slide_id"].duplicated(keep=False)]
    for slide, rows in twice.groupby("slide_id").groups.items():
        lines = ", ".join(str(row + 2) for row in rows)
        yield f"{source}: slide_id {slide!r} stands in lines {lines}: keep one of them."


def _straddlers(frame: pd.DataFrame, source: str) -> Iterator[str]:
    if "split" not in frame:
        return
    stays = frame[["patient_id", "split"]].drop_duplicates()
    torn = stays[stays["patient_id"].duplicated(keep=False)]
    for patient, splits in torn.groupby("patient_id")["split"]:
        found = ", ".join(map(repr, sorted(splits)))
        yield (
            f"{source}: patient {patient!r} is in splits {found}: "
            "a patient belongs to one split; move or exclude the slides."
        )


def _sheet_problems(frame: pd.DataFrame, source: str) -> list[str]:
    if absent := [column for column in REQUIRED if column not in frame]:
        known = ", ".join(map(str, frame.columns))
        return [f"{source}: column {column!r} is missing; found: {known}." for column in absent]
    if frame.empty:
        return [f"{source}: no rows: add a row per slide."]
    used = frame[~_excluded(frame)]
    return [
        *_row_problems(frame, source),
        *_duplicates(frame, source),
        *_straddlers(used, source),
    ]


def _excluded(frame: pd.DataFrame) -> pd.Series:
    if "exclude" not in frame:
        return pd.Series(False, index=frame.index)
    return frame["exclude"].str.strip().str.lower().isin(TRUE)


def root(config: Config, name: str) -> Path:
    """The folder that a cohort's paths are relative to."""
    cohort = config.cohorts[name]
    return Paths(config.results).demo() if cohort.demo is not None else cohort.root


def _tidy(frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    out = frame.copy()
    for column in ("site", "split"):
        out[column] = out[column].str.strip() if column in out else ""
    out["mpp"] = pd.to_numeric(out["mpp"].replace("", None)) if "mpp" in out else float("nan")
    out["mpp"] = out["mpp"].astype(float)
    out["exclude"] = _excluded(out)
    out["path"] = [str(folder / path) for path in out["path"]]
    return out


def _name_parts(frame: pd.DataFrame, part_size: int) -> pd.Series:
    """Blocks of `part_size` rows of one split, in sheet order.

    Excluded rows keep their place, so that excluding a slide moves no other to another part.
    """
    split = frame["split"].replace("", ALL)
    number = frame.groupby(split).cumcount() // part_size
    return split + "-" + number.map("{:04d}".format)


def read_sheet(config: Config, name: str) -> pd.DataFrame:
    """The slides of a cohort, excluded rows dropped.

    Returns:
        A row per slide in sheet order: `slide_id`, `patient_id`, `path` (str, under the cohort's
        root), `site`, `split` (str, empty where unknown), `mpp` (float, µm/px, NaN where not
        given), `exclude` (False), `part` (str), and every other column as str, empty where
        unknown.

    Raises:
        StainsslError: every problem of the sheet at once, with line, column, value.
    """
    return _judged(_Asked(_state(config, name), config, name)).copy(deep=False)


@dataclass(frozen=True)
class _Asked:
    """A cohort's sheet in one state: what is the same for the same rows is `state` alone."""

    state: tuple[object, ...]
    config: Config = field(compare=False)
    name: str


def _state(config: Config, name: str) -> tuple[object, ...]:
    """All that a cohort's rows depend on; a sheet by its time and size."""
    cohort = config.cohorts[name]
    stamp: object = None
    if cohort.release is not None:
        from stainssl.datasets import load

        stamp = load(cohort.release, cohort.root, cohort.options)
    elif cohort.sheet is not None and cohort.sheet.exists():
        stat = cohort.sheet.stat()
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    folder = str(root(config, name))
    return cohort.model_dump_json(), config.slides.part_size, folder, stamp


@lru_cache(maxsize=32)
def _judged(asked: _Asked) -> pd.DataFrame:
    """The rows of `read_sheet`. A sheet of half a million rows takes seconds to judge, and is asked
    for a dozen times before a job runs.
    """
    config, name = asked.config, asked.name
    frame = _raw_sheet(config, name)
    if problems := _sheet_problems(frame, source_of(config, name)):
        raise StainsslError("\n".join(problems))
    frame = _tidy(frame, root(config, name))
    if "part" not in frame:
        frame["part"] = _name_parts(frame, config.slides.part_size)
    return frame[~frame["exclude"]].reset_index(drop=True)
