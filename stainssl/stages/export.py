"""`export`: write the embeddings of a cohort, or attention, in the format of another tool."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np

from stainssl.cohort import COLUMNS, PART, parts, read_sheet
from stainssl.cohort.sheet import OF_COHORT
from stainssl.cohort.sheet_file import shown
from stainssl.config import Config, nearest
from stainssl.errors import StainsslError, translate_disk_errors
from stainssl.evaluation.kinds import labels_of
from stainssl.evaluation.labels import Labels
from stainssl.export.slide import ExportedSlide
from stainssl.export.tables import tables_of
from stainssl.stores.embeddings import Embeddings, open_embeddings
from stainssl.stores.tables import read_table
from stainssl.stores.tiles import read_qc, read_tiles

FORMATS = ("clam", "trident", "stamp", "spatialdata")  # modules of `stainssl.export`
QUPATH = "qupath"
log = logging.getLogger(__name__)


def run(
    config: Config,
    to: str,
    cohort: str,
    encoder: str,
    out: Path,
    task: str | None = None,
    head: str | None = None,
    pictures: bool = True,
) -> None:
    """Write the embeddings of a cohort in the format of another tool.

    For `qupath`, the attention of a task and head is written as GeoJSON, with pictures. Tiles
    without an embedding are left out, since no format can represent them.

    Args:
        config: the config.
        to: the tool: one of `FORMATS`, or `qupath`.
        cohort: name of the cohort.
        encoder: name of the encoder's run.
        out: output folder.
        task, head: whose attention is written; only used for `qupath`.
        pictures: whether to draw pictures of attention.

    Raises:
        StainsslError: the tool is unknown, task or head is not given for `qupath`, an input is
            missing, or the disk is full.
    """
    if to not in (*FORMATS, QUPATH):
        raise StainsslError(f"--to: unknown tool {to!r}{nearest(to, [*FORMATS, QUPATH])}")
    with translate_disk_errors(out):
        if to == QUPATH:
            _to_qupath(config, cohort, encoder, out, task, head, pictures)
        else:
            _to_folder(config, to, cohort, encoder, out)


def _to_folder(config: Config, to: str, cohort: str, encoder: str, out: Path) -> None:
    tool = import_module(f"stainssl.export.{to}")
    tiles: dict[str, int] = {}
    for slide in _slides(config, cohort, encoder):
        tool.write_slide(out, slide)
        tiles[slide.slide_id] = len(slide)
    sheet = read_sheet(config, cohort)
    columns = [c for c in sheet if c not in (*COLUMNS, PART)]
    sheet = sheet[["slide_id", "patient_id", *columns]]
    own = sheet["patient_id"].str.removeprefix(f"{cohort}{OF_COHORT}")  # as in the sheet's file
    sheet = sheet.assign(patient_id=own)
    tool.write_tables(out, tables_of(sheet, list(tiles), _labels(config, cohort)))
    log.info("%d slides, %d tiles for %s: %s", len(tiles), sum(tiles.values()), to, out)
    if left := sorted(set(sheet["slide_id"]) - set(tiles)):
        log.info("%d slides of the sheet have no features: %s", len(left), shown(left))
    files = out.glob(tool.FILES.format(encoder=encoder))
    if old := sorted(str(file) for file in files if file.stem not in tiles):
        log.warning("%d files are of slides that were not exported now: %s", len(old), shown(old))


def _labels(config: Config, cohort: str) -> dict[str, Labels]:
    """How labels are read (column → labels), by the first slide or patient task that uses each."""
    asked = [t for t in config.per_label_tasks().values() if cohort in (*t.cohorts, *t.external)]
    tasks = [task for task in reversed(asked) if task.label and task.level != "tile"]
    return {task.label: labels_of(task) for task in tasks}


def _to_qupath(
    config: Config,
    cohort: str,
    encoder: str,
    out: Path,
    task: str | None,
    head: str | None,
    pictures: bool,
) -> None:
    from stainssl.stages.attention import write_attention

    if task is None or head is None:
        raise StainsslError("--to qupath: name the --task and --head whose attention you want.")
    run = config.run(encoder)
    if source := config.encoders[config.source_encoder(run.key)].features:
        raise StainsslError(
            f"--to qupath: encoders.{encoder} is imported ({source}), and its files do not give "
            "the tile size needed for outlines."
        )
    if run.encoder.is_of_slides:
        raise StainsslError(f"--to qupath: encoders.{encoder} embeds whole slides, not tiles.")
    path = config.paths.mil(task, encoder, head) / "attention.parquet"
    attention = read_table(path, "attention")
    write_attention(config, cohort, attention, out, f"{task}, {head} on {encoder}", pictures)
    log.info("attention of %d slides: %s", attention["slide_id"].nunique(), out)


def _slides(config: Config, cohort: str, encoder: str) -> Iterator[ExportedSlide]:
    if not (own := config.run(encoder).encoder).sees_tiles and own.vectors:
        raise StainsslError(
            f"encoders.{encoder} is computed from embeddings by {own.vectors!r}: export those."
        )
    paths, tiling = config.paths, config.tiling_of(cohort)
    for part in parts(config, cohort):
        store = open_embeddings(paths.embeddings(cohort, encoder, part))
        tiles = read_tiles(paths.tiles(cohort, part))
        side = tiles.groupby("slide_id")["side"].first()
        qc = read_qc(paths.qc(cohort, part)).set_index("slide_id")
        for slide_id in store.slide_id:
            features, xy = _valid(store, slide_id)
            if not len(features):
                log.warning("%s: left out: no tile has an embedding", slide_id)
                continue
            yield ExportedSlide(
                slide_id=slide_id,
                encoder=encoder,
                features=features,
                xy_level0_px=xy,
                side_level0_px=float(side.loc[slide_id]),
                level0_mpp=float(qc.loc[slide_id, "mpp"]),
                size_level0_px=tuple(json.loads(qc.loc[slide_id, "levels"])[0]),
                tile_px=tiling.size,
                tile_mpp=tiling.mpp,
                overlap_px=tiling.overlap,
            )


def _valid(store: Embeddings, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
    rows = store.rows(slide_id)
    valid = store.valid[rows]
    if bad := int((~valid).sum()):
        log.warning("%s: %d of %d tiles have no embedding: left out", slide_id, bad, len(valid))
    features = np.asarray(store.features[rows])[valid]
    if store.scale != 1:
        features = features.astype(np.float32) / store.scale
    return features, np.stack([store.x[rows][valid], store.y[rows][valid]], axis=1)
