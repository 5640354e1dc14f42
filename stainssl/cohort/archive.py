"""Missing slides whose pixels are already stored, and files dated in the future."""

from __future__ import annotations

import time
from pathlib import Path

from stainssl.cohort.parts import part_names, part_rows
from stainssl.cohort.sheet import read_sheet, rows_source
from stainssl.config import Config
from stainssl.errors import StainsslError, Status
from stainssl.slides.hdf5_patch import file_of
from stainssl.stores.tables import read_settings
from stainssl.stores.tiles import read_qc

AHEAD_SECONDS = 120.0  # tolerance for the clock of a file server
MAX_LISTED = 5


def archived(config: Config, name: str, missing: set[str]) -> set[str]:
    """Missing slides that no job needs any more, e.g. since they were moved to an archive.

    The pixels of their part are stored, and the part was tiled from the same slides with the same
    tiling.

    Args:
        config: the config.
        name: the cohort.
        missing: `slide_id` of slides whose file does not exist.
    """
    found: set[str] = set()
    for part in part_names(config, name) if missing else ():
        found |= archived_of_part(config, name, part, missing)
    return found


def archived_of_part(config: Config, name: str, part: str, missing: set[str]) -> set[str]:
    """See `archived`; for the slides of one part. Those of a streamed cohort are always needed."""
    if config.cohorts[name].pixels == "stream":
        return set()
    slides = set(part_rows(config, name, part)["slide_id"])
    if not (slides & missing and _is_made(config, name, part, slides)):
        return set()
    qc = read_qc(config.paths.qc(name, part))
    was_there = qc.loc[qc["status"] != Status.MISSING.value, "slide_id"]
    return missing & slides & set(was_there)


def _is_made(config: Config, name: str, part: str, slides: set[str]) -> bool:
    paths = config.paths
    qc, pixels = paths.qc(name, part), paths.pixels(name, part)
    if not (pixels.exists() and paths.tiles(name, part).exists() and qc.exists()):
        return False
    try:
        made_by = read_settings(qc, "qc").get("tiling")
        tiling = config.tiling_of(name).model_dump(mode="json")
        return made_by == tiling and slides == set(read_qc(qc)["slide_id"])
    except StainsslError:  # written by another version: must be made again
        return False


def dated_in_future(config: Config, name: str) -> list[str]:
    """A warning if files of a cohort are dated in the future; empty if not.

    Snakemake compares modification times: the results of such a file are older than the file, and
    every run would repeat them.
    """
    cohort, latest = config.cohorts[name], time.time() + AHEAD_SECONDS
    files = [cohort.sheet] if cohort.sheet else []
    for row in read_sheet(config, name)[["slide_id", "path"]].itertuples(index=False):
        files.append(file_of(row.path))
        patterns = (cohort.annotations, cohort.regions)
        files += [Path(p.format(slide_id=row.slide_id)) for p in patterns if p]
    ahead = [str(file) for file in dict.fromkeys(files) if _time(file) > latest]
    if not ahead:
        return []
    listed = ", ".join(ahead[:MAX_LISTED]) + (" …" if len(ahead) > MAX_LISTED else "")
    return [
        f"{rows_source(config, name)}: {len(ahead)} files are dated in the future, so every run "
        f"would repeat their results: touch them. {listed}"
    ]


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
