"""Export of the viewer as static files, which open from disk or from any web server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np

from stainssl.config import nearest
from stainssl.errors import StainsslError
from stainssl.stores.atomic import replacing
from stainssl.view.files import page_files
from stainssl.view.handles import Key
from stainssl.view.records import Json
from stainssl.view.viewer_data import READ_ERRORS, ViewerData

STRIP = 12  # tiles of highest and of lowest attention whose pictures are written; as in slide.js
MARK = '<html lang="en"'
Segments = tuple[str, ...]


def write_export(
    viewer: ViewerData,
    folder: Path,
    slides: Sequence[str],
    report: Callable[[str], object],
    threads: int = 2,
) -> None:
    """Export the viewer with some slides: all pictures of their pyramids, and all layers.

    Nearest tiles, other stains and benchmarks are not included, since they would need files for
    each tile. A slide that cannot be read, or takes longer than `slides.max_minutes`, lacks
    pictures; the others are not affected.

    Args:
        viewer: data and pictures to export.
        folder: created; an earlier export is replaced.
        slides: names of slides; empty exports all slides of all cohorts.
        report: called with progress messages.
        threads: threads that read pictures.

    Raises:
        StainsslError: a slide is unknown, the sheet of a cohort cannot be read, or the folder
            contains something other than an export.
    """
    files = page_files()
    chosen = list(_chosen(viewer, slides))
    if folder.exists() and any(folder.iterdir()) and not (folder / "core.js").is_file():
        raise StainsslError(f"{folder} is not empty and not an earlier export: use another folder.")
    with replacing(folder) as made:
        made.mkdir()
        for name, (path, _) in files.items():
            body = path.read_bytes()
            if name == "index.html":
                body = body.replace(MARK.encode(), f'{MARK} data-exported="yes"'.encode())
            (made / name).write_bytes(body)
        _write_data(made, ("overview",), _overview(viewer, chosen))
        for cohort in dict.fromkeys(cohort for cohort, _ in chosen):
            _write_cohort(viewer, made, cohort, {s for c, s in chosen if c == cohort})
        with ThreadPoolExecutor(threads) as pool:
            for number, one in enumerate(chosen, start=1):
                detail = _write_slide(viewer, made, one, chosen, pool)
                report(f"{one[1]} ({number} of {len(chosen)})" + (f": {detail}" if detail else ""))
    report(f"Open {folder / 'index.html'} in a browser.")


def _chosen(viewer: ViewerData, slides: Sequence[str]) -> Iterator[Key]:
    every = [
        (cohort, str(slide))
        for cohort in viewer.records.config.cohorts
        for slide in viewer.records.sheet(cohort)["slide_id"]
    ]
    names = {slide for _, slide in every}
    for asked in slides:
        if asked not in names:
            raise StainsslError(f"--slide: no such slide {asked!r}{nearest(asked, sorted(names))}")
    yield from (one for one in every if not slides or one[1] in slides)


def _overview(viewer: ViewerData, chosen: list[Key]) -> Json:
    found = viewer.data("overview")
    found["benchmarks"] = []  # not exported
    counts = {cohort: sum(c == cohort for c, _ in chosen) for cohort, _ in chosen}
    found["cohorts"] = [
        {**one, "slides": counts[one["name"]]} for one in found["cohorts"] if one["name"] in counts
    ]
    return found


def _write_data(folder: Path, segments: Segments, value: Json) -> None:
    name = json.dumps("/".join(segments))
    path = folder.joinpath("data", *map(_safe, segments)).with_name(f"{_safe(segments[-1])}.js")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, separators=(",", ":"))
    path.write_text(f"stainssl.deliver({name},{text});\n", encoding="utf-8")


def _safe(word: str) -> str:
    """Escape a word as the page's URLs do (`encodeURIComponent`), so that the file is found."""
    return quote(word, safe="~!*'()")


def _write_cohort(viewer: ViewerData, folder: Path, cohort: str, slides: set[str]) -> None:
    table = viewer.data("cohort", cohort)
    kept = [i for i, slide in enumerate(table["columns"]["slide_id"]) if slide in slides]
    table["columns"] = _rows(table["columns"], kept)
    _write_data(folder, ("cohort", cohort), table)
    for stored in table["answers"]:
        found = viewer.data("predictions", cohort, stored["name"])
        if "columns" in found:
            found["columns"] = _rows(found["columns"], kept)
        _write_data(folder, ("predictions", cohort, stored["name"]), found)


def _rows(columns: Json, kept: list[int]) -> Json:
    return {name: [values[i] for i in kept] for name, values in columns.items()}


def _write_slide(
    viewer: ViewerData, folder: Path, key: Key, chosen: list[Key], pool: ThreadPoolExecutor
) -> str:
    """Write the layers and pictures of a slide; returns the reason if it was given up, or ""."""
    viewer.limits.start(key)
    _write_layers(viewer, folder, key, chosen)
    list(pool.map(partial(_write_picture, viewer, folder), _pictures(viewer, *key)))
    return viewer.limits.given_up(key)


def _write_layers(viewer: ViewerData, folder: Path, key: Key, chosen: list[Key]) -> None:
    cohort, slide = key
    found = viewer.data("slide", cohort, slide)
    own: list[Segments] = [("outlines", cohort, slide), ("stain", cohort, slide)]
    own += [("attention", cohort, slide, a["name"]) for a in found.get("answers", [])]
    own += [("probability", cohort, slide, name) for name in found.get("tile_answers", [])]
    for segments in own:
        _write_data(folder, segments, viewer.data(*segments))
    twins = [twin for twin in found.get("twins", []) if (twin["cohort"], twin["slide"]) in chosen]
    _write_data(folder, ("slide", cohort, slide), {**found, "encoders": [], "twins": twins})


def _pictures(viewer: ViewerData, cohort: str, slide: str) -> Iterator[Segments]:
    yield "thumbnail", cohort, slide
    for tile in _strip_tiles(viewer, cohort, slide):
        yield "tile", cohort, slide, str(tile)
    try:
        pyramid = viewer.pyramid(cohort, slide)
    except READ_ERRORS:
        return
    for level in range(pyramid.deepest + 1):
        columns, rows = pyramid.pictures(level)
        for column, row in np.ndindex(columns, rows):
            yield "picture", cohort, slide, str(level), str(column), str(row)


def _strip_tiles(viewer: ViewerData, cohort: str, slide: str) -> set[int]:
    tiles: set[int] = set()
    for stored in viewer.records.stored_predictions(cohort):
        found = viewer.data("attention", cohort, slide, stored.name)
        pairs = sorted(zip(found.get("value", []), found.get("tile", []), strict=True))
        tiles |= {tile for _, tile in pairs[:STRIP] + pairs[-STRIP:]}
    return tiles


def _write_picture(viewer: ViewerData, folder: Path, segments: Segments) -> None:
    path = folder.joinpath("pictures", *map(_safe, segments)).with_name(
        f"{_safe(segments[-1])}.jpg"
    )
    try:
        body = viewer.picture(*segments)
    except READ_ERRORS:
        return  # the page shows that it is missing
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
