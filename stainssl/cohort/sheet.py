"""Read and validate the sheet of a cohort, and divide it into parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from stainssl.cohort.sheet_file import SheetFile, read_sheet_file, shown
from stainssl.config import NAME, Cohort, Config, PartSize, nearest
from stainssl.errors import StainsslError
from stainssl.evaluation.labels import is_unknown, unknown_cells

MAX_ID = 150  # ids are part of file names, which have at most 255 bytes
Id = Annotated[str, StringConstraints(pattern=f"^{NAME}$", max_length=MAX_ID)]
ALL = "all"  # the split of rows without one
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
    mpp: Annotated[float, Field(gt=0)] | None = None  # µm/px at level 0; overrides the slide's own
    exclude: bool = False
    stainssl_part: Annotated[str, StringConstraints(pattern=f"^{NAME}$", max_length=MAX_ID)] = ""


PART = "stainssl_part"  # column with the part; the prefix avoids columns of the sheet
# Position in a split → size of a part from there on, with `part_size: auto`: few slides should keep
# many cores busy, and ten thousand should not become ten thousand jobs.
AUTO_SIZES = {0: 4, 64: 8, 256: 16, 1024: 32}
PATCHES_A_SLIDE = 64  # patches that take as long as a slide
MAX_EQUAL = 3  # equal errors that are listed one by one
SCANNER_WORDS = ("scanner", "vendor")  # in names of columns that describe a scanner
OPTIONAL = ("site", "split", "mpp", "exclude")
REQUIRED = ("slide_id", "patient_id", "path")
COLUMNS = (*REQUIRED, *OPTIONAL)
KNOWN = (*COLUMNS, PART)  # all columns with a meaning
OF_COHORT = ":"  # `clinic:17`: patient of a cohort with `patient_ids: local`; not allowed in ids
TCGA_SAMPLE = re.compile(r"TCGA-\w{2}-\w{4}-.+")


def _raw_sheet(config: Config, name: str) -> SheetFile:
    cohort = config.cohorts[name]
    if cohort.demo is not None:
        from stainssl.demo import sheet

        return _numbered(sheet(cohort.demo.seed, cohort.demo.patients).astype(str))
    if cohort.release is not None:
        return _numbered(_release_sheet(cohort, name))
    assert cohort.sheet is not None
    labels = [c for task in config.tasks.values() for c in task.label_columns.values()]
    try:
        return read_sheet_file(cohort.sheet, cohort.columns, KNOWN, labels, REQUIRED)
    except StainsslError as error:
        lines = str(error).split("\n")
        raise StainsslError("\n".join(f"cohorts.{name}.sheet: {line}" for line in lines)) from None


def _numbered(frame: pd.DataFrame) -> SheetFile:
    """A sheet that is not a file, with the line numbers it would have in one."""
    return SheetFile(frame.set_axis(range(2, len(frame) + 2)))


def _release_sheet(cohort: Cohort, name: str) -> pd.DataFrame:
    """The sheet made from the tables and file names of a release.

    Raises:
        StainsslError: all problems of its folder, one per line.
    """
    from stainssl.datasets import load

    assert cohort.release is not None
    found = load(cohort.release, cohort.root, cohort.options)
    if found.problems:
        where = f"cohorts.{name} (release {cohort.release})"
        raise StainsslError("\n".join(f"{where}: {problem}" for problem in found.problems))
    return found.sheet


def release_warnings(config: Config, name: str) -> list[str]:
    """What is missing or unexpected in the folder of a release; empty for other cohorts."""
    from stainssl.datasets import load

    cohort = config.cohorts[name]
    if cohort.release is None:
        return []
    return load(cohort.release, cohort.root, cohort.options).warnings


def sheet_notes(config: Config, name: str) -> list[str]:
    """Changes that were made when a cohort's sheet was read."""
    return list(_raw_sheet_cached(sheet_state(config, name)).notes)


def sheet_summary(rows: pd.DataFrame) -> list[str]:
    """Lines with the sites and splits of the rows of `read_sheet`."""
    lines = []
    for column in ("site", "split"):
        counts = rows[column].replace("", "none").value_counts(sort=False)
        words = [f"{word} {count}" for word, count in counts.items()]
        lines.append(f"{column}: {shown(words, 12)}")
    return lines


def rows_source(config: Config, name: str) -> str:
    """Where a cohort's rows come from, for messages."""
    cohort = config.cohorts[name]
    if cohort.release:
        return f"release {cohort.release}"
    return str(cohort.sheet) if cohort.sheet else f"cohort {name}"


@dataclass(frozen=True)
class _Fault:
    """A cell that is not valid; equal faults are reported in one message."""

    line: int
    column: str
    value: object
    wanted: str


def _row_faults(frame: pd.DataFrame) -> Iterator[_Fault]:
    given = [column for column in KNOWN if column in frame]
    for line, row in zip(frame.index, frame[given].to_dict("records"), strict=True):
        flag = str(row.get("exclude", "")).lower()
        if flag not in TRUE | FALSE:
            yield _Fault(line, "exclude", flag, "must be true or false (1, 0, yes, no, x) or empty")
        if row["patient_id"] and is_unknown(row["patient_id"]):
            wanted = "reads as 'unknown': give the patient an id of their own, or exclude the row"
            yield _Fault(line, "patient_id", row["patient_id"], wanted)
        if TCGA_SAMPLE.fullmatch(str(row["patient_id"])):
            wanted = "is a sample or slide barcode: use the patient's, its first three fields"
            yield _Fault(line, "patient_id", row["patient_id"], wanted)
        values = {
            str(k): v for k, v in row.items() if k != "exclude" and (v != "" or k in REQUIRED)
        }
        try:
            SheetRow.model_validate(values)
        except ValidationError as error:
            for found in error.errors():
                wanted = _wanted(found["type"], found["msg"])
                yield _Fault(line, str(found["loc"][-1]), found["input"], wanted)


def _wanted(kind: str, message: str) -> str:
    if kind == "string_pattern_mismatch":
        return "may hold letters, digits, '.', '_' and '-', and starts with a letter or a digit"
    return message


def _row_problems(frame: pd.DataFrame, source: str) -> Iterator[str]:
    """Messages on rows that are not valid; line numbers are those of an editor."""
    alike: dict[tuple[str, str], list[_Fault]] = {}
    for fault in _row_faults(frame):
        alike.setdefault((fault.column, fault.wanted), []).append(fault)
    for (column, wanted), faults in alike.items():
        if len(faults) <= MAX_EQUAL:
            for fault in faults:
                yield f"{source}, line {fault.line}: {column} is {fault.value!r}: it {wanted}."
        else:
            lines = shown([str(fault.line) for fault in faults])
            values = shown(list(dict.fromkeys(repr(fault.value) for fault in faults)))
            yield f"{source}, lines {lines}: {column} is {values}: it {wanted}."


def _duplicates(frame: pd.DataFrame, source: str) -> Iterator[str]:
    twice = frame[frame["slide_id"].duplicated(keep=False)]
    found = [
        f"slide_id {slide!r} is in lines {shown([str(line) for line in lines])}"
        for slide, lines in twice.groupby("slide_id").groups.items()
    ]
    if len(found) <= MAX_EQUAL:
        yield from (f"{source}: {sentence}: keep one of them." for sentence in found)
    else:
        yield f"{source}: {len(found)} slide_ids occur twice, such as {found[0]}: keep one of them."


def _differ_in_capitals(frame: pd.DataFrame, source: str) -> Iterator[str]:
    """Ids, sites and splits that differ only in case."""
    for column in ("slide_id", "patient_id", "site", "split"):
        if column in frame:
            for words in alike_words(frame[column]):
                both = " and ".join(words)
                yield f"{source}: {column} {both} differ only in case: spell them the same."


def alike_words(values: pd.Series) -> list[list[str]]:
    """The first few groups of distinct values that differ only in case, quoted."""
    words = pd.Series(values.unique(), dtype=object)
    groups = words.groupby(words.str.casefold()).agg(list)
    return [[repr(word) for word in group] for group in groups if len(group) > 1][:MAX_EQUAL]


def _torn_parts(frame: pd.DataFrame, source: str) -> Iterator[str]:
    """Parts with rows of two splits, which would leak test patients into training."""
    if PART not in frame:
        return
    if empty := [str(line) for line in frame.index[frame[PART] == ""]]:
        yield f"{source}, lines {shown(empty)}: {PART} is empty: fill it in every row, or drop it."
    splits = frame["split"] if "split" in frame else pd.Series("", index=frame.index)
    for part, found in splits.groupby(frame[PART]):
        if found.nunique() > 1:
            names = ", ".join(map(repr, sorted(found.unique())))
            yield f"{source}: {PART} {part!r} has rows of splits {names}: a part has one split."


def _straddlers(frame: pd.DataFrame, source: str) -> Iterator[str]:
    if "split" not in frame:
        return
    stays = frame[["patient_id", "split"]].drop_duplicates()
    torn = stays[stays["patient_id"].duplicated(keep=False)]
    for patient, splits in torn.groupby("patient_id")["split"]:
        found = ", ".join(map(repr, sorted(splits)))
        yield (
            f"{source}: patient {patient!r} is in splits {found}: "
            "a patient must be in one split; move or exclude the slides."
        )


def _sheet_problems(frame: pd.DataFrame, source: str) -> list[str]:
    if absent := [column for column in REQUIRED if column not in frame]:
        return [_absent_column(column, list(map(str, frame.columns)), source) for column in absent]
    if frame.empty:
        return [f"{source}: no rows: add one row per slide."]
    used = frame[~_excluded(frame)]
    if used.empty:
        return [f"{source}: all {len(frame)} rows are excluded: no slide is left."]
    return [
        *_row_problems(frame, source),
        *_duplicates(frame, source),
        *_straddlers(used, source),
        *_differ_in_capitals(used, source),
        *_torn_parts(used, source),
    ]


def _absent_column(column: str, found: list[str], source: str) -> str:
    sentence = f"{source}: column {column!r} is missing; found: {', '.join(found)}."
    near = nearest(column, found)
    if "did you mean" not in near:
        return sentence
    return f"{sentence[:-1]}{near} Then rename it, or set columns: {{{column}: …}}."


def _excluded(frame: pd.DataFrame) -> pd.Series:
    if "exclude" not in frame:
        return pd.Series(False, index=frame.index)
    return frame["exclude"].str.lower().isin(TRUE)


def root(config: Config, name: str) -> Path:
    """The folder that a cohort's paths are relative to."""
    cohort = config.cohorts[name]
    return config.paths.demo() if cohort.demo is not None else cohort.root


def _tidy(frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    out = frame.copy()
    for column in ("site", "split"):
        out[column] = out.get(column, "")
    out["mpp"] = pd.to_numeric(out["mpp"].replace("", None)) if "mpp" in out else float("nan")
    out["mpp"] = out["mpp"].astype(float)
    out["exclude"] = _excluded(out)
    out["path"] = [str(folder / path) for path in out["path"]]
    return out


def _part_numbers(places: pd.Series, part_size: PartSize, kind: str) -> pd.Series:
    """The number of each row's part, from the row's position in its split."""
    if part_size != "auto":
        return places // part_size
    scale = PATCHES_A_SLIDE if kind == "patches" else 1
    firsts = [first * scale for first in AUTO_SIZES]
    ends = [*firsts[1:], max(firsts[-1], len(places))]
    sizes = [size * scale for size in AUTO_SIZES.values()]
    starts = np.concatenate([np.arange(*band) for band in zip(firsts, ends, sizes, strict=True)])
    return pd.Series(np.searchsorted(starts, places, side="right") - 1, places.index)


def _name_parts(frame: pd.DataFrame, part_size: PartSize, kind: str) -> pd.Series:
    """The part of each row: a block of rows of one split, in sheet order.

    Its size is `part_size`, or depends only on its position, so that an appended row changes only
    the last part of its split. Excluded rows still count, so that excluding a slide moves no other
    to another part.
    """
    split = frame["split"].replace("", ALL)
    number = _part_numbers(frame.groupby(split).cumcount(), part_size, kind)
    return split + "-" + number.map("{:04d}".format)


def read_sheet(config: Config, name: str) -> pd.DataFrame:
    """Read and validate the sheet of a cohort, without excluded rows.

    Returns:
        A row per slide in sheet order: `slide_id`, `patient_id` (`{cohort}:{id}` if the cohort has
        `patient_ids: local`), `path` (str, joined to the cohort's root), `site` and `split` (str,
        empty if unknown), `mpp` (float, µm/px at level 0, NaN if not given), `exclude` (False),
        `stainssl_part` (str), and all other columns as str, empty if unknown.

    Raises:
        StainsslError: all problems of the sheet at once, with line, column and value.
    """
    return validated_sheet(sheet_state(config, name)).copy(deep=False)


@dataclass(frozen=True)
class SheetState:
    """A version of a cohort's sheet, compared by `state` alone; key of the caches."""

    state: tuple[object, ...]
    config: Config = field(compare=False)
    name: str


def sheet_state(config: Config, name: str) -> SheetState:
    """Everything that a cohort's rows depend on; files by time, size and inode."""
    cohort = config.cohorts[name]
    stamp: object = None
    if cohort.release is not None:
        from stainssl.datasets import load

        stamp = load(cohort.release, cohort.root, cohort.options)
    elif cohort.sheet is not None and cohort.sheet.exists():
        stat = cohort.sheet.stat()
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    folder = str(root(config, name))
    state = cohort.model_dump_json(), config.slides.part_size, folder, stamp
    return SheetState(state, config, name)


@lru_cache(maxsize=32)
def validated_sheet(asked: SheetState) -> pd.DataFrame:
    """The validated rows of `read_sheet`, cached.

    Validating a sheet of half a million rows takes seconds, and it is read a dozen times before a
    job runs.
    """
    config, name = asked.config, asked.name
    frame = _unknown_as_empty(_raw_sheet_cached(asked).rows)
    if problems := _sheet_problems(frame, rows_source(config, name)):
        raise StainsslError("\n".join(problems))
    frame = _tidy(frame, root(config, name))
    if config.cohorts[name].patient_ids == "local":
        frame["patient_id"] = f"{name}{OF_COHORT}" + frame["patient_id"]
    if PART not in frame:
        frame[PART] = _name_parts(frame, config.slides.part_size, config.cohorts[name].kind)
    return frame[~frame["exclude"]].reset_index(drop=True)


def _unknown_as_empty(frame: pd.DataFrame) -> pd.DataFrame:
    """Replace words for unknown in `mpp` and `exclude` by empty cells."""
    given = [column for column in ("mpp", "exclude") if column in frame]
    known = {column: frame[column].mask(unknown_cells(frame[column]), "") for column in given}
    return frame.assign(**known)


@lru_cache(maxsize=32)
def _raw_sheet_cached(asked: SheetState) -> SheetFile:
    return _raw_sheet(asked.config, asked.name)
