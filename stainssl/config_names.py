"""Checks of names in a config: duplicates, collisions in the results folder, reserved names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stainssl.config import Config, Task

RESERVED_HEADS = ("probe", "fine-tune")  # result folders of tile tasks
RESERVED_ENCODERS = ("folds.csv", "slides.csv")  # files beside the folders of encoders
MAX_NAME = 100  # names become part of longer file names
# Columns that the package adds to rows of a sheet or to tables of tiles.
RESERVED_COLUMNS = ("cohort", "tile", "stainssl_part")
NO_LABELS = (*RESERVED_COLUMNS, "slide_id", "patient_id", "path", "mpp", "exclude")


def name_problems(config: Config) -> Iterator[str]:
    """List the problems with the names of a config, one sentence each."""
    yield from _twice(config.model_dump(exclude={"results", "tilings"}), "")
    yield from _colliding_runs(config)
    yield from _colliding_label_tasks(config)
    yield from _reserved(config)
    for kind in ("cohorts", "tilings", "encoders", "tasks", "heads", "benchmarks"):
        yield from _alike(kind, list(getattr(config, kind)))
    for name, task in config.tasks.items():
        yield from _columns(name, task)


def _twice(found: Any, where: str) -> Iterator[str]:
    """Lists with duplicate entries, such as cohorts, seeds or columns."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from _twice(value, f"{where}.{key}" if where else str(key))
    elif isinstance(found, list):
        words = Counter(item for item in found if isinstance(item, (str, int)))
        for word, count in words.items():
            if count > 1:
                yield f"{where} has {word!r} {count} times: keep one."


def _colliding_runs(config: Config) -> Iterator[str]:
    """Runs of the same name: `x` with seeds 0 and 1 has the run `x.1`, as has an encoder `x.1`."""
    keys: dict[str, set[str]] = {}
    for run in config.runs():
        keys.setdefault(run.name, set()).add(run.key)
    for name, several in keys.items():
        if len(several) > 1:
            both = " and ".join(sorted(several))
            yield f"encoders {both} both make the run {name!r}, with the same files: rename one."


def _colliding_label_tasks(config: Config) -> Iterator[str]:
    """Results of the same name: `x` with labels a and b has `x.a`, as has a task `x.a`."""
    names = Counter(n for name, task in config.tasks.items() for n in task.per_label_tasks(name))
    for name, count in names.items():
        if count > 1:
            yield f"tasks: {count} of them have results under {name!r}: rename one."


def _reserved(config: Config) -> Iterator[str]:
    for kind, names in (("heads", RESERVED_HEADS), ("encoders", RESERVED_ENCODERS)):
        for name in names:
            if name in getattr(config, kind):
                yield f"{kind}.{name}: the name is reserved for result files: choose another."


def _alike(kind: str, names: list[str]) -> Iterator[str]:
    """Names that are too long, or differ only in case: some file systems ignore case."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.casefold(), []).append(name)
        if len(name) > MAX_NAME:
            yield f"{kind}.{name}: {len(name)} characters; at most {MAX_NAME} are allowed."
    for same in groups.values():
        if len(same) > 1:
            yield f"{kind}: {' and '.join(same)} differ only in case: rename one."


def _columns(name: str, task: Task) -> Iterator[str]:
    for key, column in task.label_columns.items():
        if column in NO_LABELS:
            yield (
                f"tasks.{name}.{key}: {column!r} is reserved in result tables: rename the"
                " column, or map it with the cohort's 'columns'."
            )
        if column in task.clinical:
            yield f"tasks.{name}.clinical has the {key} {column!r}: this would leak the label."
    for key, columns in (("clinical", task.clinical), ("split.stratify", task.split.stratify)):
        for column in columns:
            if column in RESERVED_COLUMNS:
                yield f"tasks.{name}.{key}: the name {column!r} is taken: rename the column."
    if task.split.group in RESERVED_COLUMNS:
        yield f"tasks.{name}.split.group: {task.split.group!r} is taken: rename the column."
