"""Annotated classes of a cohort, and whether its tile tasks can use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from stainssl.cohort.sheet import read_sheet
from stainssl.cohort.sheet_file import shown
from stainssl.config import Cohort, Config, Outlines
from stainssl.errors import StainsslError
from stainssl.slides.annotation_files import named, read_annotations
from stainssl.slides.annotations import near_classes

MAX_QUICK_BYTES = 50_000_000  # of annotations that are read at each start of a run, within 2 s


@dataclass(frozen=True)
class CohortOutlines:
    """The annotation files of a cohort.

    Attributes:
        classes: file → class → number of areas.
        notes: other content of the files → number.
        unreadable: a message for each file that cannot be read.
        slides: number of slides of the cohort.
    """

    classes: dict[Path, Counter[str]]
    notes: Counter[str] = field(default_factory=Counter)
    unreadable: tuple[str, ...] = ()
    slides: int = 0

    def total(self) -> Counter[str]:
        """Class → number of areas in all files."""
        return sum(self.classes.values(), Counter())

    def report(self) -> Iterator[str]:
        """Yield lines that summarize the files."""
        yield f"annotations: {len(self.classes)} files for {self.slides} slides"
        if counts := self.total().most_common():
            words = [f"{name or 'without class'} {n}" for name, n in counts]
            yield f"annotated classes: {shown(words, 12)}"
        yield from (f"{count} × {note}" for note, count in self.notes.items())
        if self.unreadable:
            yield f"{len(self.unreadable)} cannot be read, so their tiles have no label: " + (
                "; ".join(self.unreadable[:3])
            )


def label_names(config: Config, cohort: str) -> list[str]:
    """Distinct labels of the tile tasks that use a cohort, in the order of the config."""
    tasks = [t for t in config.tasks.values() if t.level == "tile" and cohort in t.cohorts]
    return list(dict.fromkeys(task.label for task in tasks))


def outlines_of(cohort: Cohort, label: str) -> Outlines:
    """Classes that make up a label: those in the config, else the class with its name."""
    return cohort.outlines.get(label, Outlines(of=[label]))


def known_classes(cohort: Cohort, labels: list[str]) -> set[str]:
    """All annotation classes that the config names, for any label."""
    every = [*cohort.outlines.values(), *(outlines_of(cohort, label) for label in labels)]
    return {name for one in every for name in (*one.of, *one.without, *one.ignore)}


def file_of_slide(pattern: str | None, slide_id: str) -> Path | None:
    """The file of a slide by a pattern with {slide_id}; None if it does not exist."""
    path = pattern and Path(pattern.format(slide_id=slide_id))
    return path if path and path.exists() else None


@lru_cache(maxsize=100_000)
def _read(path: Path, _stamp: tuple[int, int]) -> tuple[Counter[str], Counter[str], str]:
    """Classes, notes, and the error if the file cannot be read."""
    try:
        found = read_annotations(path)
    except StainsslError as error:
        return Counter(), Counter(), str(error)
    return found.classes(), Counter(found.notes), ""


def read_outlines(
    config: Config, name: str, max_bytes: float = float("inf")
) -> CohortOutlines | None:
    """Read the annotations of a cohort of slides.

    Returns:
        None if there are none, if they are larger than `max_bytes` in total, or for the synthetic
        cohort, whose annotations are made by a job.
    """
    cohort = config.cohorts[name]
    if cohort.annotations is None or cohort.demo is not None or cohort.kind != "slides":
        return None
    slides = read_sheet(config, name)["slide_id"]
    files = [f for s in slides if (f := file_of_slide(cohort.annotations, s)) is not None]
    stats = {file: file.stat() for file in files}
    if sum(stat.st_size for stat in stats.values()) > max_bytes:
        return None
    read = {f: _read(f, (stat.st_mtime_ns, stat.st_size)) for f, stat in stats.items()}
    notes: Counter[str] = sum((found for _, found, _ in read.values()), Counter())
    unreadable = tuple(why for _, _, why in read.values() if why)
    return CohortOutlines(
        {f: classes for f, (classes, _, _) in read.items()}, notes, unreadable, len(slides)
    )


def _near_problem(
    name: str, label: str, found: CohortOutlines, near: list[str], of: list[str]
) -> str:
    files = sum(any(word in classes for word in near) for classes in found.classes.values())
    both = ", ".join(map(repr, near))
    return (
        f"cohorts.{name}.annotations: {files} file(s) have areas of class {both}, while the label"
        f" {label!r} is made from {', '.join(map(repr, of))}. If they are the same, set"
        f" cohorts.{name}.outlines: {{{label}: {{of: [{', '.join([*of, *near])}]}}}}; otherwise"
        " list it under 'ignore' there."
    )


def outline_problems(config: Config, name: str, max_bytes: float) -> Iterator[str]:
    """Yield a message if annotations give no label, or probably another one than intended."""
    cohort, labels = config.cohorts[name], label_names(config, name)
    if not labels or cohort.annotations is None:
        return
    found = read_outlines(config, name, max_bytes)
    if found is None:
        return
    if not found.classes:
        yield (
            f"cohorts.{name}.annotations: {cohort.annotations} matches no existing file for any"
            f" of {found.slides} slides."
        )
        return
    total = found.total()
    for label in labels:
        of = outlines_of(cohort, label).of
        if near := near_classes(total, of, known_classes(cohort, labels)):
            yield _near_problem(name, label, found, near, of)
        elif not any(named(word) in total for word in of):
            known = ", ".join(repr(word) for word, _ in total.most_common(12) if word) or "none"
            yield (
                f"cohorts.{name}.annotations: no area in {len(found.classes)} files has the class"
                f" {', '.join(map(repr, of))}, from which the label {label!r} is made; classes"
                f" found: {known}. Name them in cohorts.{name}.outlines."
            )
