"""Duplicates across sheets: a file with two names, a patient id in two cohorts."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

from stainssl.cohort.sheet import read_sheet, rows_source
from stainssl.cohort.sheet_file import shown
from stainssl.config import Config
from stainssl.runtime.content import content_key
from stainssl.slides.hdf5_patch import file_of

THREADS = 16  # file status is read in parallel: on network storage each file takes 1 ms
MAX_QUICK_FILES = 5_000  # files of equal size whose contents are compared at each start of a run
MAX_TOLD = 3
A = TypeVar("A", bound=Hashable)
B = TypeVar("B")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Listed:
    """A row of a sheet: slide, patient and file."""

    cohort: str
    slide_id: str
    patient_id: str
    split: str
    path: str

    def named(self) -> str:
        """The row as named in messages."""
        split = f", split {self.split}" if self.split else ""
        return f"{self.slide_id!r} (patient {self.patient_id}{split}: {self.path})"


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, RuntimeError):  # missing, or a loop of links: reported elsewhere
        return None


def _each(work: Callable[[A], B], of: Iterable[A]) -> dict[A, B]:
    items = list(dict.fromkeys(of))
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(items, pool.map(work, items), strict=True))


def _alike(keys: Mapping[Path, K]) -> dict[K, list[Path]]:
    """Key → its files, for keys of several files."""
    found: dict[K, list[Path]] = {}
    for path, key in keys.items():
        found.setdefault(key, []).append(path)
    return {key: paths for key, paths in found.items() if len(paths) > 1}


def _content(path: Path) -> bytes | None:
    try:
        return content_key(path)
    except OSError:  # reported when the slide is read
        return None


def file_keys(paths: Iterable[Path], max_files: float = float("inf")) -> dict[Path, Hashable]:
    """Map each file to a key that identifies its content.

    Links, hard links and different spellings of a path have the same key. Copies do too, unless
    more than `max_files` files share their size with another. Missing files are left out.
    """
    stats = {path: stat for path, stat in _each(_stat, paths).items() if stat is not None}
    keys: dict[Path, Hashable] = {p: (s.st_dev, s.st_ino) for p, s in stats.items()}
    first = {key: path for path, key in reversed(list(keys.items()))}
    sizes = {p: stats[p].st_size for p in first.values() if S_ISREG(stats[p].st_mode)}
    twins = [p for s, found in _alike(sizes).items() if s for p in found]
    if len(twins) <= max_files:
        contents = _each(_content, twins)
        known = {path: key for path, key in contents.items() if key is not None}
        equal = {keys[p]: key for key, found in _alike(known).items() for p in found}
        keys = {path: equal.get(key, key) for path, key in keys.items()}
    return keys


def _listed(config: Config, thorough: bool) -> Iterator[Listed]:
    for name, cohort in config.cohorts.items():
        if cohort.demo is None and (cohort.release is None or thorough):
            columns = ["slide_id", "patient_id", "split", "path"]
            for row in read_sheet(config, name)[columns].itertuples(index=False):
                yield Listed(name, *row)


def _groups(config: Config, thorough: bool) -> list[list[Listed]]:
    """Groups of rows that name the same image."""
    rows = list(_listed(config, thorough))
    limit = float("inf") if thorough else MAX_QUICK_FILES
    files = [file_of(row.path) for row in rows]
    keys = file_keys(files, limit)
    found: dict[Hashable, list[Listed]] = {}
    for row, file in zip(rows, files, strict=True):
        if file in keys:
            picture = row.path[len(str(file)) :]  # e.g. `#17`, a row of an HDF5 file
            found.setdefault((keys[file], picture), []).append(row)
    return [group for group in found.values() if len(group) > 1]


def _first_pair(group: list[Listed]) -> tuple[Listed, Listed] | None:
    """The first two rows of the same image that contradict each other; None if there are none.

    Two cohorts may have the same image of the same patient, e.g. with different tilings.
    """
    for one, other in combinations(group, 2):
        if one.cohort == other.cohort or one.patient_id != other.patient_id:
            return one, other
    return None


def file_problems(config: Config, thorough: bool) -> Iterator[str]:
    """Yield a message for files that occur twice in the sheets: by other paths, links or copies."""
    pairs = [pair for group in _groups(config, thorough) if (pair := _first_pair(group))]
    for one, other in pairs[:MAX_TOLD]:
        both = f"{one.named()} and {other.named()}"
        if one.cohort == other.cohort:
            where = f"{rows_source(config, one.cohort)}: slides"
            yield f"{where} {both} are the same file or identical copies: exclude one of them."
        else:
            yield (
                f"cohorts {one.cohort} and {other.cohort}: slides {both} are the same file or"
                " identical copies with different patients: exclude one, or give them one"
                " patient_id (and patient_ids: shared)."
            )
    if len(pairs) > MAX_TOLD:
        yield f"{len(pairs) - MAX_TOLD} more files occur twice in the sheets."


def _is_asked(config: Config, one: str, other: str) -> bool:
    """Whether the config must set `patient_ids` for two cohorts with common patient ids."""
    cohorts = [config.cohorts[name] for name in (one, other)]
    if any(cohort.demo is not None for cohort in cohorts):
        return False
    if all(cohort.patient_ids == "shared" for cohort in cohorts):
        return False
    sources = {(cohort.sheet and cohort.sheet.resolve(), cohort.release) for cohort in cohorts}
    return len(sources) == 2  # within one sheet or release, an id is one person


def _used_together(config: Config) -> set[frozenset[str]]:
    """Pairs of cohorts of one task, or on which one encoder is trained and tested.

    External cohorts of a task are left out: their patients are checked with the task.
    """
    groups = [task.cohorts for task in config.tasks.values()]
    for benchmark in config.benchmarks.values():
        tasks = [config.tasks[name] for name in benchmark.tasks]
        tested = [c for task in tasks for c in (*task.cohorts, *task.external)]
        trained = [
            config.encoders[config.source_encoder(name)].train for name in benchmark.encoders
        ]
        groups += [[*train.cohorts, cohort] for train in trained if train for cohort in tested]
    pairs = {frozenset(pair) for group in groups for pair in combinations(group, 2)}
    told = {frozenset((c, e)) for t in config.tasks.values() for c in t.cohorts for e in t.external}
    return pairs - told


def patient_problems(config: Config) -> Iterator[str]:
    """Yield a message if cohorts that are used together have patient ids in common."""
    used = _used_together(config)
    for one, other in combinations(config.cohorts, 2):
        if frozenset((one, other)) not in used or not _is_asked(config, one, other):
            continue
        people = [set(read_sheet(config, name)["patient_id"]) for name in (one, other)]
        if both := sorted(people[0] & people[1]):
            yield (
                f"cohorts {one} and {other} have {len(both)} patient ids in common ({shown(both)})."
                " Set patient_ids in both: shared if an id is the same person in all cohorts; local"
                " if each cohort has its own numbering."
            )
