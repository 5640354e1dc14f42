"""Jobs on slides: `demo`, `tile`, `statuses`, `gate`, `label`, `pixels`."""

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
    """Settings of the demo → synthetic slides, their sheet and ground-truth polygons."""

    folder: Resource[Path]
    sheet: Writes[Path]
    slides: Writes[list[Path]]
    truth: Writes[list[Path]]
    demo: Setting[Demo]


def demo(config: Config) -> DemoJob:
    """Plan the `demo` job, which creates the synthetic cohort of the config.

    Raises:
        StainsslError: the config has no synthetic cohort, or more than one.
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
    """Slides of a part → tiles, status of each slide, previews.

    Attributes:
        rows: `slide_id`, `path`, `mpp` of the part's slides.
        region_files: slide → its file of outlines, if it exists.
        regions: pattern of these files, with {slide_id}; None: tiles anywhere.
        root: folder of the cohort. If it is missing, the mount is at fault and not a slide.
        may_miss: whether a missing file is a status of the slide instead of an error.
        staging: local folder for copies of slides (None: read in place), and its limit in bytes.
        max_minutes: time limit for one slide.
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
    """Plan the `tile` job of a part."""
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
    """Slide files of a part: existing ones, and all of a demo or a release.

    The demo creates its slides, and the sheet of a release is made from existing files. Slides
    that were archived once their pixels existed are included: Snakemake keeps the outputs of a
    job whose inputs are missing, but runs the job again if its list of inputs changes.
    """
    cohort = config.cohorts[name]
    files = dict(zip(rows["slide_id"], map(file_of, rows["path"]), strict=True))
    if not (cohort.demo or cohort.release):
        missing = {slide for slide, file in files.items() if not file.exists()}
        gone = missing and missing - archived_of_part(config, name, part, missing)
        files = {slide: file for slide, file in files.items() if slide not in gone}
    return list(dict.fromkeys(files.values()))


def _files_by_slide(cohort: Cohort, rows: pd.DataFrame, pattern: str | None) -> dict[str, Path]:
    """Slide → its file by a pattern with {slide_id}, if it exists or the demo creates it."""
    if pattern is None:
        return {}
    files = {slide: Path(pattern.format(slide_id=slide)) for slide in rows["slide_id"]}
    return {slide: file for slide, file in files.items() if cohort.demo or file.exists()}


@dataclass(frozen=True)
class StatusesJob(Job):
    """Statuses of the slides of a cohort → table, page and contact sheet.

    Attributes:
        qc: part → table of statuses.
        previews: part → folder of previews.
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
    """Plan the `statuses` job of a cohort."""
    paths = config.paths
    names = part_names(config, cohort)
    sheet = read_sheet(config, cohort).rename(columns={PART: "part"})
    return StatusesJob(
        cohort=cohort,
        qc={part: paths.qc(cohort, part) for part in names},
        previews={part: paths.previews(cohort, part) for part in names},
        table=paths.slide_statuses(cohort),
        page=paths.slides_page(cohort),
        overview=paths.overview(cohort),
        rows=columns_of(sheet, "slide_id", "patient_id", "site", "split", "part"),
    )


@dataclass(frozen=True)
class GateJob(Job):
    """Table of statuses → whether few enough slides of the cohort are bad."""

    table: Reads[Path]
    gate: Writes[Path]
    max_bad_slides: Setting[float]


def gate(config: Config, cohort: str) -> GateJob:
    """Plan the `gate` job of a cohort."""
    paths = config.paths
    return GateJob(
        table=paths.slide_statuses(cohort),
        gate=paths.gate(cohort),
        max_bad_slides=config.slides.max_bad_slides,
    )


@dataclass(frozen=True)
class LabelJob(Job):
    """Tiles, and annotations or the sheet → tile labels of a part.

    Attributes:
        annotation_files: slide → its annotation file; slides without one are left out.
        rows: `slide_id` and those labels that are columns of the sheet.
        names: labels of the tile tasks on the cohort.
        outlines: label → annotation classes that define it.
        known_classes: all annotation classes that the config names for the cohort.
        annotations: pattern of the annotation files, with {slide_id}.
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
    """Plan the `label` job of a part."""
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
        slides: slides of a demo, which a job creates; empty for other cohorts. Their slides are
            inputs of `tile`, which reruns if one is replaced: listing them twice would slow down
            every dry-run.
        rows: `slide_id` and `path`.
        root: folder of the cohort. If it is missing, the mount is at fault and not a slide.
        may_miss: whether a slide that is gone by now is left out instead of an error.
    """

    tiles: Reads[Path]
    qc: Reads[Path]
    slides: Reads[list[Path]]
    pixels: Writes[Path]
    rows: Setting[pd.DataFrame]
    reader: Setting[str]
    tiling: Setting[Tiling]
    root: Resource[Path]
    may_miss: Resource[bool]
    staging: Resource[tuple[Path | None, int]]
    max_minutes: Resource[float]


def pixels(config: Config, cohort: str, part: str) -> PixelsJob:
    """Plan the `pixels` job of a part."""
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
        root=root(config, cohort),
        may_miss=config.slides.on_missing == "quarantine",
        staging=config.slides.staging_place(),
        max_minutes=config.slides.max_minutes,
    )
