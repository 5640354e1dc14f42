"""Jobs on slides: `demo`, `tile`, `gate`, `label`, `pixels`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stainssl.cohort import PART, part_names, part_rows, read_sheet, root
from stainssl.cohort.archive import archived_of_part
from stainssl.cohort.outlines import known_classes, label_names, outlines_of
from stainssl.config import Cohort, Config, Demo, Frame, Outlines, Tiling
from stainssl.errors import StainsslError
from stainssl.plan.job import Job, Reads, Resource, Setting, Writes
from stainssl.plan.rows import columns_of, part_columns
from stainssl.slides.hdf5_patch import file_of


@dataclass(frozen=True)
class DemoJob(Job):
    """The synthetic cohort: slides, sheet and truth polygons."""

    folder: Resource[Path]
    sheet: Writes[Path]
    slides: Writes[list[Path]]
    truth: Writes[list[Path]]
    demo: Setting[Demo]


def demo(config: Config) -> DemoJob:
    """The job that makes the config's synthetic cohort.

    Raises:
        StainsslError: not exactly one cohort of the config is synthetic.
    """
    names = [name for name, cohort in config.cohorts.items() if cohort.demo]
    if len(names) != 1:
        raise StainsslError(
            f"{len(names)} cohorts have the key 'demo': `stainssl demo` needs exactly one."
        )
    spec, folder = config.cohorts[names[0]].demo, config.paths.demo()
    assert spec is not None
    rows = read_sheet(config, names[0])
    return DemoJob(
        folder=folder,
        sheet=folder / "slides.csv",
        slides=[Path(path) for path in rows["path"]],
        truth=[folder / "truth" / f"{slide}.geojson" for slide in rows["slide_id"]],
        demo=spec,
    )


@dataclass(frozen=True)
class TileJob(Job):
    """Slides of a part → tiles, what happened to each slide, pictures.

    Attributes:
        rows: `slide_id`, `path`, `mpp` of the part's slides.
        region_files: slide → the outlines that exist.
        regions: the pattern with {slide_id} that names them; None: tiles stand anywhere.
        root: the cohort's folder: where it is gone, its disk is, and no slide is to blame.
        may_miss: whether a missing file is a status instead of an error.
        staging: a local folder for copies of slides, and the bytes that it may hold.
        max_minutes: that a slide may take.
    """

    slides: Reads[list[Path]]
    region_files: Reads[dict[str, Path]]
    tiles: Writes[Path]
    qc: Writes[Path]
    previews: Writes[Path]
    rows: Setting[pd.DataFrame]
    kind: Setting[str]
    patches: Setting[str]
    reader: Setting[str]
    tiling: Setting[Tiling]
    regions: Setting[str | None]
    regions_frame: Setting[Frame]
    root: Resource[Path]
    may_miss: Resource[bool]
    staging: Resource[tuple[Path | None, int]]
    max_minutes: Resource[float]


def tile(config: Config, cohort: str, part: str) -> TileJob:
    """The `tile` job of a part."""
    found, paths = config.cohorts[cohort], config.paths
    rows = part_rows(config, cohort, part)
    return TileJob(
        slides=_slide_files(config, cohort, part, rows),
        region_files=_files_by_slide(found, rows, found.regions),
        tiles=paths.tiles(cohort, part),
        qc=paths.qc(cohort, part),
        previews=paths.previews(cohort, part),
        rows=part_columns(config, cohort, part, "slide_id", "path", "mpp"),
        kind=found.kind,
        patches=found.patches if found.kind == "patches" else "whole",
        reader=_reader(config, found),
        tiling=config.tiling_of(cohort),
        regions=found.regions,
        regions_frame=found.regions_frame,
        root=root(config, cohort),
        may_miss=config.slides.on_missing == "quarantine",
        staging=config.slides.staging_place(),
        max_minutes=config.slides.max_minutes,
    )


def _reader(config: Config, cohort: Cohort) -> str:
    return "patches" if cohort.kind == "patches" else config.slides.reader


def _slide_files(config: Config, name: str, part: str, rows: pd.DataFrame) -> list[Path]:
    """The slides that exist, or that the demo makes; a release was listed to make its sheet.

    So are those that were put away after their pixels were made: Snakemake takes what a job has
    made as it is where the job's inputs are gone, and would make it again where they are others.
    """
    cohort = config.cohorts[name]
    files = dict(zip(rows["slide_id"], map(file_of, rows["path"]), strict=True))
    if not (cohort.demo or cohort.release):
        missing = {slide for slide, file in files.items() if not file.exists()}
        gone = missing and missing - archived_of_part(config, name, part, missing)
        files = {slide: file for slide, file in files.items() if slide not in gone}
    return list(dict.fromkeys(files.values()))


def _files_by_slide(cohort: Cohort, rows: pd.DataFrame, pattern: str | None) -> dict[str, Path]:
    """Slide → its file of a pattern with {slide_id}, where it exists or the demo makes it."""
    if pattern is None:
        return {}
    files = {slide: Path(pattern.format(slide_id=slide)) for slide in rows["slide_id"]}
    return {slide: file for slide, file in files.items() if cohort.demo or file.exists()}


@dataclass(frozen=True)
class StatusesJob(Job):
    """What happened to each slide of a cohort: table, page and picture.

    Attributes:
        qc: part → its table.
        previews: part → its folder of pictures.
        rows: `slide_id`, `patient_id`, `site`, `split`, `part` of the cohort.
    """

    cohort: Resource[str]
    qc: Reads[dict[str, Path]]
    previews: Reads[dict[str, Path]]
    table: Writes[Path]
    page: Writes[Path]
    overview: Writes[Path]
    rows: Setting[pd.DataFrame]


def statuses(config: Config, cohort: str) -> StatusesJob:
    """The `statuses` job of a cohort."""
    paths = config.paths
    names = part_names(config, cohort)
    sheet = read_sheet(config, cohort).rename(columns={PART: "part"})
    return StatusesJob(
        cohort=cohort,
        qc={part: paths.qc(cohort, part) for part in names},
        previews={part: paths.previews(cohort, part) for part in names},
        table=paths.checked(cohort),
        page=paths.slides_page(cohort),
        overview=paths.overview(cohort),
        rows=columns_of(sheet, "slide_id", "patient_id", "site", "split", "part"),
    )


@dataclass(frozen=True)
class GateJob(Job):
    """Whether too many of a cohort's slides are bad, by the table of statuses."""

    table: Reads[Path]
    gate: Writes[Path]
    max_bad_slides: Setting[float]


def gate(config: Config, cohort: str) -> GateJob:
    """The `gate` job of a cohort."""
    paths = config.paths
    return GateJob(
        table=paths.checked(cohort),
        gate=paths.gate(cohort),
        max_bad_slides=config.slides.max_bad_slides,
    )


@dataclass(frozen=True)
class LabelJob(Job):
    """Tiles, and annotations or the sheet → labels of a part.

    Attributes:
        annotation_files: slide → its annotations; slides without any are left out.
        rows: `slide_id` and the labels that the sheet has.
        names: the labels of the tile tasks that ask the cohort.
        outlines: label → the classes that make it.
        known_classes: every class that the config names for the cohort.
        annotations: the pattern with {slide_id} that names the annotations.
    """

    tiles: Reads[Path]
    qc: Reads[Path]
    annotation_files: Reads[dict[str, Path]]
    labels: Writes[Path]
    kind: Setting[str]
    rows: Setting[pd.DataFrame]
    names: Setting[list[str]]
    outlines: Setting[dict[str, Outlines]]
    known_classes: Setting[set[str]]
    annotations: Setting[str | None]
    annotations_frame: Setting[Frame]


def label(config: Config, cohort: str, part: str) -> LabelJob:
    """The `label` job of a part."""
    found, paths = config.cohorts[cohort], config.paths
    rows = part_rows(config, cohort, part)
    names = label_names(config, cohort)
    pattern = found.annotations if names and found.kind == "slides" else None
    return LabelJob(
        tiles=paths.tiles(cohort, part),
        qc=paths.qc(cohort, part),
        annotation_files=_files_by_slide(found, rows, pattern),
        labels=paths.labels(cohort, part),
        kind=found.kind,
        rows=part_columns(config, cohort, part, "slide_id", *names),
        names=names,
        outlines={name: outlines_of(found, name) for name in names},
        known_classes=known_classes(found, names) if names else set(),
        annotations=pattern,
        annotations_frame=found.annotations_frame,
    )


@dataclass(frozen=True)
class PixelsJob(Job):
    """Slides and tiles of a part → encoded tiles and their stain profiles.

    Attributes:
        slides: those that a job makes. Others are inputs of `tile` alone, which a slide that was
            replaced runs again: naming them twice would lengthen every dry-run.
        rows: `slide_id` and `path`.
    """

    tiles: Reads[Path]
    qc: Reads[Path]
    slides: Reads[list[Path]]
    pixels: Writes[Path]
    rows: Setting[pd.DataFrame]
    reader: Setting[str]
    tiling: Setting[Tiling]
    staging: Resource[tuple[Path | None, int]]
    max_minutes: Resource[float]


def pixels(config: Config, cohort: str, part: str) -> PixelsJob:
    """The `pixels` job of a part."""
    found, paths = config.cohorts[cohort], config.paths
    rows = part_columns(config, cohort, part, "slide_id", "path")
    return PixelsJob(
        tiles=paths.tiles(cohort, part),
        qc=paths.qc(cohort, part),
        slides=list(map(Path, rows["path"])) if found.demo else [],
        pixels=paths.pixels(cohort, part),
        rows=rows,
        reader=_reader(config, found),
        tiling=config.tiling_of(cohort),
        staging=config.slides.staging_place(),
        max_minutes=config.slides.max_minutes,
    )
