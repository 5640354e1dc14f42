"""Checks of sheets, tasks and encoders before any job starts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING

import pandas as pd

from stainssl.cohort.archive import archived, dated_in_future
from stainssl.cohort.identity import file_problems, patient_problems
from stainssl.cohort.outlines import MAX_QUICK_BYTES, outline_problems, read_outlines
from stainssl.cohort.parts import train_parts
from stainssl.cohort.sheet import (
    MAX_EQUAL,
    PART,
    read_sheet,
    release_warnings,
    root,
    rows_source,
    sheet_notes,
    sheet_summary,
)
from stainssl.cohort.sheet_file import shown
from stainssl.config import Config, Encoder, Task, nearest
from stainssl.errors import StainsslError
from stainssl.evaluation.labels import unknown_cells
from stainssl.slides.hdf5_patch import file_of

if TYPE_CHECKING:
    from stainssl.evaluation.labels import Labels


def missing_files(config: Config, name: str) -> pd.DataFrame:
    """The rows of a cohort whose file does not exist.

    None for the synthetic cohort, and none for a release, whose sheet is made from its files.
    """
    rows, cohort = read_sheet(config, name), config.cohorts[name]
    if cohort.demo is not None or cohort.release is not None:
        return rows.head(0)
    files = rows["path"].map(file_of)
    there = {file: file.exists() for file in files.unique()}
    return rows[~files.map(there).astype(bool)]


def needed_files(config: Config, name: str) -> pd.DataFrame:
    """The rows of a cohort whose file does not exist and is still needed (see `archived`)."""
    missing = missing_files(config, name)
    return missing[~missing["slide_id"].isin(archived(config, name, set(missing["slide_id"])))]


def _file_problems(config: Config, name: str) -> Iterator[str]:
    folder = root(config, name)
    if config.cohorts[name].demo is None and not folder.is_dir():
        yield (
            f"cohorts.{name}.root: the folder {folder} does not exist: is its disk mounted?"
            " Otherwise name the folder that holds the slides."
        )
        return
    yield from _path_problems(config, name)
    if config.slides.on_missing == "quarantine":
        return
    rows, missing = read_sheet(config, name), needed_files(config, name)
    advice = "fix the path, exclude the row, or set slides.on_missing: quarantine."
    if len(missing) > MAX_EQUAL:
        first = missing["path"].iloc[0]
        yield (
            f"{rows_source(config, name)}: {len(missing)} of {len(rows)} files do not exist, such"
            f" as {first} (slide {missing['slide_id'].iloc[0]!r}): {advice}"
        )
        return
    for row in missing.itertuples():
        yield (
            f"{rows_source(config, name)}: slide {row.slide_id!r}: {row.path} does not exist: "
            f"{advice}"
        )


def _path_problems(config: Config, name: str) -> Iterator[str]:
    """Paths outside the cohort's root, and paths that Snakemake would read as patterns."""
    rows = read_sheet(config, name)
    if config.cohorts[name].sheet is None:
        return
    yield from outside_problems(config, name, f"cohorts.{name}.root", "outside_root: true")
    braces = rows[rows["path"].str.contains(r"[{}\n\r]", regex=True)]
    if len(braces):
        yield (
            f"{rows_source(config, name)}: {len(braces)} path(s) have braces or line breaks, such"
            f" as {braces['path'].iloc[0]!r}, which Snakemake reads as a pattern: rename the files,"
            " or link to them under other names."
        )


def outside_problems(config: Config, name: str, root_key: str, outside_key: str) -> Iterator[str]:
    """Yield a message if paths of a sheet are outside the cohort's root, and this is not allowed.

    Args:
        config: the config.
        name: the cohort.
        root_key: key or option that sets the root, for the message.
        outside_key: key or option that allows such paths, for the message.
    """
    cohort, rows = config.cohorts[name], read_sheet(config, name)
    folder = os.path.normpath(root(config, name).absolute())
    paths = rows["path"].map(os.path.abspath)
    outside = rows[paths.map(lambda path: os.path.commonpath([path, folder]) != folder)]
    if len(outside) and not cohort.outside_root:
        yield (
            f"{rows_source(config, name)}: {len(outside)} path(s) are outside {folder}, such as"
            f" {outside['path'].iloc[0]}: set {root_key} to a folder above them, or {outside_key}."
        )


def _task_problems(config: Config, name: str, task: Task) -> Iterator[str]:
    for cohort_name in task.cohorts:
        cohort = config.cohorts[cohort_name]
        frame, source = read_sheet(config, cohort_name), rows_source(config, cohort_name)
        if task.level == "tile" and cohort.kind == "slides":
            if cohort.annotations is None:
                yield (
                    f"tasks.{name}: a tile label of slides comes from annotations: set "
                    f"cohorts.{cohort_name}.annotations, a pattern with {{slide_id}}."
                )
        else:
            yield from _absent(f"tasks.{name}", task.label_columns.items(), frame, source)
        of_label = task.label_columns.values()
        split = [c for c in (*task.split.stratify, task.split.group) if c not in of_label]
        others = [*(("clinical", c) for c in task.clinical), *(("split", c) for c in split)]
        yield from _absent(f"tasks.{name}", others, frame, source)


def _absent(
    task: str, asked: Iterable[tuple[str, str]], frame: pd.DataFrame, source: str
) -> Iterator[str]:
    """Yield a message for each column that a task names and a sheet does not have.

    Args:
        task: the task as named in messages.
        asked: pairs of a key of the task and a column.
        frame: rows of the sheet.
        source: the sheet as named in messages.
    """
    for key, column in asked:
        if column not in frame:
            yield (
                f"{task}.{key}: {source} has no column "
                f"{column!r}{nearest(column, list(frame.columns))}"
            )


def _external_problems(config: Config, name: str, task: Task) -> Iterator[str]:
    """Missing label columns of external cohorts, and patients shared with the task's cohorts."""
    own = {p for cohort in task.cohorts for p in read_sheet(config, cohort)["patient_id"]}
    for cohort in task.external:
        frame = read_sheet(config, cohort)
        source = f"{rows_source(config, cohort)} (external)"
        absent = list(_absent(f"tasks.{name}", task.label_columns.items(), frame, source))
        for key, one in task.per_label_tasks(name).items():
            yield from absent or _external_words(config, key, one, cohort)
        if both := sorted(own & set(frame["patient_id"])):
            yield (
                f"tasks.{name}.external: {len(both)} patients of {cohort} have the ids of "
                f"training patients: {', '.join(both[:5])}. Leave them out, or, if they are other"
                f" people, set cohorts.{cohort}.patient_ids: local."
            )


def _external_words(config: Config, name: str, task: Task, cohort: str) -> Iterator[str]:
    """Label values of an external cohort that the task's own cohorts do not have."""
    from stainssl.evaluation.kinds import labels_of

    source = rows_source(config, cohort)
    labels, rows = labels_of(task), _task_rows(config, task)
    if not labels.is_in(rows):
        return
    try:
        own = labels.words_of(rows)
    except StainsslError:  # reported by `_fold_problems`
        return
    try:
        words = labels.words_of(read_sheet(config, cohort))
    except StainsslError as error:
        yield f"tasks.{name}.external: {source}: {error}"
        return
    counts = labels.unseen_classes(own, words).value_counts()
    if strange := shown([f"{word!r} ({count})" for word, count in counts.items()]):
        yield (
            f"tasks.{name}.external: {source} has {labels.label!r} {strange},"
            f" which no slide of {', '.join(task.cohorts)} has: name them in 'classes', or in"
            " 'na' if they mean unknown."
        )


def _strangers(config: Config, name: str, task: Task) -> Iterator[str]:
    """Cohorts of a task whose labels have no value in common, e.g. 0 and 1, neg and pos."""
    from stainssl.evaluation.kinds import labels_of

    labels = labels_of(task)
    frames = {cohort: read_sheet(config, cohort) for cohort in task.cohorts}
    try:
        read = {c: labels.words_of(f) for c, f in frames.items() if labels.is_in(f)}
    except StainsslError:  # reported by `_fold_problems`
        return
    words = {cohort: set(found) - {""} for cohort, found in read.items()}
    for one, other in combinations(words, 2):
        strange = labels.unseen_classes(read[one], read[other])
        if words[one] and len(strange) and not words[one] & words[other]:
            both = " and ".join(shown(sorted(words[cohort])) for cohort in (one, other))
            yield (
                f"tasks.{name}: {labels.label!r} of cohorts {one} and {other} has no word in common"
                f" ({both}): spell them the same, or name them in 'classes'."
            )


def _task_rows(config: Config, task: Task) -> pd.DataFrame:
    frames = [read_sheet(config, cohort).assign(cohort=cohort) for cohort in task.cohorts]
    return pd.concat(frames, ignore_index=True)


def _fold_problems(config: Config, name: str, task: Task) -> Iterator[str]:
    from stainssl.evaluation.folds import RANKING
    from stainssl.evaluation.kinds import labels_of

    labels, rows = labels_of(task), _task_rows(config, task)
    if labels.is_in(rows) and (found := labels.problems(rows)):
        yield from (f"tasks.{name}: {sentence}" for sentence in found)
        return
    try:
        patients, folds = labels.folds(rows, task.level, task.split, seed=0)
    except StainsslError as error:
        unknown = _unknown_words(config, task)
        yield from (f"tasks.{name}: {sentence}{unknown}" for sentence in str(error).split("\n"))
        return
    for one in task.per_label_tasks(name).values():
        yield from _not_of_two(name, one, labels_of(one), rows)
    ranks = set(task.metrics) & set(RANKING) and task.level == "patient"
    if ranks and (problem := labels.ranking_problem(patients, folds)):
        yield f"tasks.{name}: {problem}"


def _not_of_two(name: str, task: Task, labels: Labels, rows: pd.DataFrame) -> Iterator[str]:
    """Metrics and recalibration for two classes if the label has more than two."""
    from stainssl.evaluation.folds import OF_TWO_CLASSES

    order = labels.order(labels.words_of(rows)) if labels.is_in(rows) else ()
    binary = [metric for metric in task.metrics if metric in OF_TWO_CLASSES]
    if len(order) > 2 and task.recalibrate == "platt":
        yield (
            f"tasks.{name}.recalibrate: platt needs two classes, and {labels.label!r} has"
            f" {len(order)}: use temperature."
        )
    if len(order) > 2 and binary:
        yield (
            f"tasks.{name}.metrics: {', '.join(binary)} need two classes, and"
            f" {labels.label!r} has {len(order)}: {', '.join(order)}. Group them with 'classes', or"
            " choose other metrics."
        )


def _unknown_words(config: Config, task: Task) -> str:
    """End of a message: which label values were read as unknown."""
    from stainssl.evaluation.kinds import labels_of

    lines = labels_of(task).summary(_task_rows(config, task))
    return "".join(f" Read as {line}." for line in lines if "unknown:" in line)


def task_summary(config: Config, name: str) -> list[str]:
    """Lines on a task: patients and slides per class, unknown values, small folds, other notes."""
    from stainssl.evaluation.kinds import labels_of

    task = config.tasks[name]
    labels, rows = labels_of(task), _task_rows(config, task)
    made = labels.folds(rows, task.level, task.split, seed=0)
    return [*labels.summary(rows), *labels.fold_notes(*made), *_clinical_notes(task, rows)]


def _clinical_notes(task: Task, rows: pd.DataFrame) -> Iterator[str]:
    """Clinical columns with words among numbers, or that differ between slides of a patient."""
    for column in task.clinical:
        if odd := _odd_words(rows[column]):
            yield (
                f"clinical: {column!r} has numbers and the words {shown(odd)}, and each of its"
                " values is therefore read as a word: correct them, or leave their cells empty."
            )
    for column in task.clinical if task.level == "patient" else ():
        several = rows.groupby("patient_id")[column].nunique(dropna=False) > 1
        if several.any():
            yield (
                f"clinical: {column!r} differs between slides of {int(several.sum())} patient(s),"
                f" such as {several.idxmax()}: the value of the first slide is used."
            )


def _odd_words(column: pd.Series) -> list[str]:
    """Words of a column whose known values are otherwise, by more than half, numbers."""
    known = column[~unknown_cells(column)].astype(str).str.strip()
    words = known[pd.to_numeric(known, errors="coerce").isna()]
    return [repr(word) for word in words.unique()] if 2 * len(words) < len(known) else []


def _encoder_problems(config: Config, name: str, encoder: Encoder) -> Iterator[str]:
    try:
        train_parts(config, encoder)
    except StainsslError as error:
        yield f"encoders.{name}.{error}"
    for run in config.runs_of(name):
        model = config.paths.model(run.name)
        if encoder.frozen and encoder.method and not model.is_dir():
            yield (
                f"encoders.{name}: frozen, and {model} does not exist: "
                "train it first (frozen: false), or copy the model there."
            )


def _centring_problems(config: Config) -> Iterator[str]:
    """Encoders with `center` whose folds test slides of a site without training patients."""
    from stainssl.evaluation.centring import sites_of, unknown_sites
    from stainssl.evaluation.kinds import labels_of

    pairs = [pair for pair in config.benchmarked() if config.encoders[pair[1]].center]
    for task, encoder in pairs:
        spec = config.tasks[task]
        labels, rows = labels_of(spec), _task_rows(config, spec)
        try:
            _, folds = labels.folds(rows, spec.level, spec.split, seed=config.seed)
            is_known = labels.words_of(rows) != "" if labels.is_in(rows) else slice(None)
        except StainsslError:  # reported for the task
            continue
        slides = rows[["slide_id", "patient_id"]].assign(site=sites_of(rows))[is_known]
        if found := unknown_sites(slides, folds):
            yield (
                f"encoders.{encoder}.center: tasks.{task} tests slides of sites without training"
                f" patients: {shown(found)}. Their mean could only be computed on test patients:"
                " use another split, or separate benchmarks."
            )


def _features_problems(config: Config) -> Iterator[str]:
    """Imported features whose folder cannot be used, or that are tested on a tile task."""
    from stainssl.export.source import source

    for name, encoder in config.encoders.items():
        if encoder.features is None:
            continue
        try:
            source(encoder.features)
        except StainsslError as error:
            yield f"encoders.{name}.features: {error}"
        else:
            yield from _unmatched_features(config, name, encoder.features)
        for key, benchmark in config.benchmarks.items():
            tile_tasks = [t for t in benchmark.tasks if config.tasks[t].level == "tile"]
            if name in benchmark.encoders and tile_tasks:
                yield (
                    f"benchmarks.{key}: tasks.{tile_tasks[0]} is of level tile, and encoders.{name}"
                    " (imported features) has other tiles: put it in another benchmark."
                )


def _unmatched_features(config: Config, name: str, features: str) -> Iterator[str]:
    """Cohorts without any slide in a folder of imported features."""
    from stainssl.export.source import FILES, feature_file, source

    tool, folder = source(features)
    for cohort in _embedded_by(config, name):
        slides = read_sheet(config, cohort)["slide_id"]
        if not any(feature_file(tool, folder, slide) for slide in slides):
            there = sorted(file.name for file in folder.iterdir())
            yield (
                f"encoders.{name}.features: {folder} has no file for any of the"
                f" {len(slides)} slides of {cohort}: looked for"
                f" {FILES[tool][0].format(slides.iloc[0])}, found {shown(there) or 'nothing'}."
            )


def _embedded_by(config: Config, encoder: str) -> list[str]:
    """The cohorts that an encoder embeds."""
    return [c for c in config.cohorts if any(run.key == encoder for run in config.runs_on(c))]


def feature_warnings(config: Config) -> list[str]:
    """A warning for each cohort of which some slides are missing in a folder of features."""
    from stainssl.export.source import feature_files

    told = []
    for name, encoder in config.encoders.items():
        for cohort in _embedded_by(config, name) if encoder.features else ():
            slides = read_sheet(config, cohort)["slide_id"].tolist()
            found = feature_files(str(encoder.features), slides)
            if absent := [slide for slide in slides if slide not in found]:
                told.append(
                    f"encoders.{name}.features: {len(absent)} of {len(slides)} slides of {cohort}"
                    f" have no file in {encoder.features} and are left out: {shown(absent)}."
                )
    return told


def _tiling_problems(config: Config) -> Iterator[str]:
    """Encoders whose tiling is not that of a cohort they are trained or tested on."""
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
                    f"{config.cohorts[cohort].tiling!r}: they must be the same."
                )


def sheet_report(config: Config, name: str) -> Iterator[str]:
    """Yield lines that summarize a cohort whose sheet has no problem."""
    sheet = read_sheet(config, name)
    yield (
        f"{name}: {len(sheet)} slides of {sheet['patient_id'].nunique()} patients "
        f"in {sheet[PART].nunique()} parts, no problem found"
    )
    drawn = read_outlines(config, name)
    for sentence in (
        *sheet_summary(sheet),
        *sheet_notes(config, name),
        *(drawn.report() if drawn else ()),
        *release_warnings(config, name),
        *dated_in_future(config, name),
    ):
        yield f"  {sentence}"


def check(config: Config, thorough: bool = False) -> list[str]:
    """Check everything that can be checked before a job starts, without torch.

    Checked are files, sheets, ids, labels, annotations, folds, splits and frozen encoders. Networks
    and weights are checked by `stainssl.cohort.encoder_checks`, which needs torch.

    Args:
        config: the config.
        thorough: read all annotation files, and compare the contents of all files of equal size,
            however long it takes; otherwise only if there are not too many.

    Returns:
        A message for each problem.
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
    if not sound:  # tasks and encoders cannot be checked without valid sheets
        return problems
    problems += [*file_problems(config, thorough), *patient_problems(config)]
    for name in config.cohorts:
        most = float("inf") if thorough else MAX_QUICK_BYTES
        problems += outline_problems(config, name, most)
    for name, task in config.tasks.items():
        found = [*_task_problems(config, name, task), *_external_problems(config, name, task)]
        problems += found or [*_strangers(config, name, task), *_fold_problems(config, name, task)]
    for name, encoder in config.encoders.items():
        problems += _encoder_problems(config, name, encoder)
    problems += [*_tiling_problems(config), *_features_problems(config)]
    return [*problems, *_centring_problems(config)]
