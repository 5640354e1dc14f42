"""Sheets, splits, parts, and every check that can be made before a job starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from stainssl.config import NAME, Cohort, Config, Encoder, Task, nearest
from stainssl.paths import Paths
from stainssl.slides.packed import file_of
from stainssl.status import StainsslError

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
    from stainssl.releases import load

    assert cohort.release is not None
    found = load(cohort.release, cohort.root, cohort.options)
    if found.problems:
        where = f"cohorts.{name} (release {cohort.release})"
        raise StainsslError("\n".join(f"{where}: {problem}" for problem in found.problems))
    return found.sheet


def release_warnings(config: Config, name: str) -> list[str]:
    """What is missing of a release's folder or not as published; none for another cohort."""
    from stainssl.releases import load

    cohort = config.cohorts[name]
    if cohort.release is None:
        return []
    return load(cohort.release, cohort.root, cohort.options).warnings


def _source(config: Config, name: str) -> str:
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
        from stainssl.releases import load

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
    if problems := _sheet_problems(frame, _source(config, name)):
        raise StainsslError("\n".join(problems))
    frame = _tidy(frame, root(config, name))
    if "part" not in frame:
        frame["part"] = _name_parts(frame, config.slides.part_size)
    return frame[~frame["exclude"]].reset_index(drop=True)


def parts(config: Config, name: str) -> dict[str, pd.DataFrame]:
    """The parts of a cohort in sheet order: name → rows as in `read_sheet`."""
    frame = read_sheet(config, name)
    return {str(part): rows for part, rows in frame.groupby("part", sort=False)}


def site_columns(columns: Iterable[str]) -> list[str]:
    """The columns of a sheet that say where a slide was made: its site, and its scanner."""
    return [c for c in columns if c == "site" or any(w in c.lower() for w in SCANNER_WORDS)]


def train_parts(config: Config, encoder: Encoder) -> list[tuple[str, str]]:
    """The (cohort, part) pairs that an encoder may see in training.

    Raises:
        StainsslError: a split of `train.splits` has no slide in any of `train.cohorts`.
    """
    if encoder.train is None:
        return []
    rows = pd.concat([read_sheet(config, c).assign(cohort=c) for c in encoder.train.cohorts])
    split = rows["split"].replace("", ALL)
    if absent := sorted(set(encoder.train.splits) - set(split)):
        raise StainsslError(
            f"train.splits {absent}: no slide of {', '.join(encoder.train.cohorts)} is in it;"
            f" splits found: {', '.join(sorted(set(split)))}."
        )
    wanted = rows[split.isin(encoder.train.splits)]
    return list(wanted[["cohort", "part"]].drop_duplicates().itertuples(index=False, name=None))


def missing_files(config: Config, name: str) -> pd.DataFrame:
    """The rows of a cohort whose file does not exist.

    None of the synthetic cohort, and none of a release, which was listed to make its sheet.
    """
    rows, cohort = read_sheet(config, name), config.cohorts[name]
    if cohort.demo is not None or cohort.release is not None:
        return rows.head(0)
    files = rows["path"].map(file_of)
    there = {file: file.exists() for file in files.unique()}
    return rows[~files.map(there).astype(bool)]


def _file_problems(config: Config, name: str) -> Iterator[str]:
    folder = root(config, name)
    if config.cohorts[name].demo is None and not folder.is_dir():
        yield f"cohorts.{name}.root: the folder {folder} does not exist: is its disk mounted?"
        return
    if config.slides.on_missing == "quarantine":
        return
    missing = missing_files(config, name)
    for row in missing.head(20).itertuples():
        yield (
            f"{_source(config, name)}: slide {row.slide_id!r}: {row.path} does not exist: mend the "
            "path, exclude the row, or set slides.on_missing: quarantine."
        )
    if len(missing) > 20:
        yield f"{_source(config, name)}: {len(missing) - 20} more files do not exist."


def _task_problems(config: Config, name: str, task: Task) -> Iterator[str]:
    for cohort_name in task.cohorts:
        cohort = config.cohorts[cohort_name]
        frame = read_sheet(config, cohort_name)
        if task.level == "tile" and cohort.kind == "slides":
            if cohort.annotations is None:
                yield (
                    f"tasks.{name}: a tile label of slides comes from annotations: set "
                    f"cohorts.{cohort_name}.annotations, a pattern with {{slide_id}}."
                )
        elif task.label not in frame:
            yield (
                f"tasks.{name}.label: {_source(config, cohort_name)} has no column "
                f"{task.label!r}{nearest(task.label, list(frame.columns))}"
            )
        for column in task.clinical:
            if column not in frame:
                yield (
                    f"tasks.{name}.clinical: {_source(config, cohort_name)} has no column "
                    f"{column!r}{nearest(column, list(frame.columns))}"
                )
        for column in (*task.split.stratify, task.split.group):
            if column != task.label and column not in frame:
                yield (
                    f"tasks.{name}.split: {_source(config, cohort_name)} has no column "
                    f"{column!r}{nearest(column, list(frame.columns))}"
                )


def _external_problems(config: Config, name: str, task: Task) -> Iterator[str]:
    """The label must be there, and nobody may be in an external cohort and in the task's own."""
    own = {p for cohort in task.cohorts for p in read_sheet(config, cohort)["patient_id"]}
    for cohort in task.external:
        frame = read_sheet(config, cohort)
        if task.label not in frame:
            yield (
                f"tasks.{name}.label: {_source(config, cohort)} (external) has no column "
                f"{task.label!r}{nearest(task.label, list(frame.columns))}"
            )
        if both := sorted(own & set(frame["patient_id"])):
            yield (
                f"tasks.{name}.external: {len(both)} patients of {cohort} have the names of "
                f"patients that train: {', '.join(both[:5])}. Leave them out or rename them."
            )


def _fold_problems(config: Config, name: str, task: Task) -> Iterator[str]:
    from stainssl.benchmark.folds import problems

    frames = [read_sheet(config, cohort).assign(cohort=cohort) for cohort in task.cohorts]
    for sentence in problems(pd.concat(frames, ignore_index=True), task.level, task.label, task):
        yield f"tasks.{name}: {sentence}"


def _encoder_problems(config: Config, name: str, encoder: Encoder) -> Iterator[str]:
    paths = Paths(config.results)
    try:
        train_parts(config, encoder)
    except StainsslError as error:
        yield f"encoders.{name}.{error}"
    for run in config.runs_of(name):
        if encoder.frozen and encoder.method and not paths.model(run.name).is_dir():
            yield (
                f"encoders.{name}: frozen, and {paths.model(run.name)} does not exist: "
                "train it first (frozen: false), or put the model there."
            )


def _features_problems(config: Config) -> Iterator[str]:
    """Imported features: their folder is there, and no task asks for labels of our tiles."""
    from stainssl.export.source import source

    for name, encoder in config.encoders.items():
        if encoder.features is None:
            continue
        try:
            source(encoder.features)
        except StainsslError as error:
            yield f"encoders.{name}.features: {error}"
        for key, benchmark in config.benchmarks.items():
            tile_tasks = [t for t in benchmark.tasks if config.tasks[t].level == "tile"]
            if name in benchmark.encoders and tile_tasks:
                yield (
                    f"benchmarks.{key}: tasks.{tile_tasks[0]} is of level tile, and the tiles of"
                    f" encoders.{name} (imported features) are not ours: give it another benchmark."
                )


def _tiling_problems(config: Config) -> Iterator[str]:
    """An encoder's tiling must be the one of the cohorts that it is trained or tested on."""
    for name, encoder in config.encoders.items():
        used = set(encoder.train.cohorts if encoder.train else ())
        for benchmark in config.benchmarks.values():
            if name in benchmark.encoders:
                tasks = [config.tasks[task] for task in benchmark.tasks]
                used |= {c for task in tasks for c in (*task.cohorts, *task.external)}
        for cohort in sorted(used):
            if config.cohorts[cohort].tiling != encoder.tiling:
                yield (
                    f"encoders.{name}.tiling is {encoder.tiling!r}, cohorts.{cohort}.tiling is "
                    f"{config.cohorts[cohort].tiling!r}: an encoder sees one tiling."
                )


def check(config: Config) -> list[str]:
    """Every problem that can be known before a job starts, a sentence each; empty where none.

    Files that do not exist, sheets, ids, labels, folds, splits, frozen encoders.
    """
    problems: list[str] = []
    sound = True
    for name in config.cohorts:
        try:
            read_sheet(config, name)
            if config.needs_slides:
                problems += _file_problems(config, name)
        except StainsslError as error:
            problems += str(error).split("\n")
            sound = False
    if not sound:  # tasks and encoders cannot be judged on sheets that cannot be read
        return problems
    for name, task in config.tasks.items():
        found = [*_task_problems(config, name, task), *_external_problems(config, name, task)]
        problems += found or list(_fold_problems(config, name, task))
    for name, encoder in config.encoders.items():
        problems += _encoder_problems(config, name, encoder)
    return [*problems, *_tiling_problems(config), *_features_problems(config)]
