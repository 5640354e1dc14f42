"""Write attention of slides as pictures and GeoJSON, for `predict` and `export`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stainssl.cohort import parts, stored_pixels
from stainssl.config import Config
from stainssl.errors import SlideError
from stainssl.export.qupath import tile_objects, write_geojson
from stainssl.figures.mil import attention_overlay, tile_strip
from stainssl.slides.errors import run_with_limits
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_thumbnail, resolve_mpp
from stainssl.slides.unchanged import SlideFingerprint, recorded
from stainssl.stores.atomic import replacing
from stainssl.stores.pixels import Pixels, open_pixels
from stainssl.stores.tiles import read_bounds, read_qc, read_tiles

LONGEST_PX = 900  # longer side of the slide's picture
STRIP = 8  # tiles with the highest attention, and as many with the lowest
log = logging.getLogger(__name__)


def write_attention(
    config: Config,
    cohort: str,
    attention: pd.DataFrame,
    folder: Path,
    title: str,
    pictures: bool,
) -> None:
    """Write `{slide}.geojson`, `{slide}.png` and `{slide}-tiles.png` for each slide with attention.

    If a slide can no longer be opened, `{slide}.png` is left out, with a warning. If there are no
    stored pixels, `{slide}-tiles.png` is left out.

    Args:
        config: the config.
        cohort: name of the cohort.
        attention: `slide_id`, `tile`, `x`, `y` (level-0 px), `attention` (percentile rank within
            the slide).
        folder: output folder; created if necessary.
        title: task and head, shown in the pictures.
        pictures: whether to draw the pictures, which takes about one second per slide.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = config.paths
    by_slide = dict(list(attention.groupby("slide_id")))
    for part, sheet in parts(config, cohort).items():
        here = sheet[sheet["slide_id"].isin(by_slide)]
        if here.empty:
            continue
        tiles = read_tiles(paths.tiles(cohort, part))
        qc = paths.qc(cohort, part)
        bounds, fingerprints = read_bounds(qc), recorded(read_qc(qc))
        store = stored_pixels(config, cohort, part)
        pixels = open_pixels(store) if store else None
        for row in here.itertuples(index=False):
            found = by_slide[row.slide_id].merge(tiles[["slide_id", "tile", "side"]])
            origin = bounds[row.slide_id][:2]
            _geojson(found, folder / f"{row.slide_id}.geojson", origin)
            if not pictures:
                continue
            name = f"{row.slide_id}, {title}"
            for suffix, figure in _pictures(
                config, cohort, row, found, pixels, name, fingerprints.get(row.slide_id)
            ):
                with replacing(folder / f"{row.slide_id}{suffix}.png") as made:
                    figure.savefig(made, format="png")


def _geojson(found: pd.DataFrame, path: Path, origin_level0_px: tuple[int, int]) -> None:
    x, y, side = (found[c].to_numpy() for c in ("x", "y", "side"))
    ranks = found["attention"].to_numpy(float)
    shown = tile_objects(x, y, side.astype(float), {"attention": ranks}, origin_level0_px)
    write_geojson(path, shown)


def _pictures(
    config: Config,
    cohort: str,
    row: object,
    found: pd.DataFrame,
    pixels: Pixels | None,
    title: str,
    fingerprint: SlideFingerprint | None,
) -> Iterator[tuple[str, Figure]]:
    try:
        yield "", _overlay(config, cohort, row, found, title, fingerprint)
    except SlideError as error:
        log.warning("%s: no attention figure: %s", title, error)
    if pixels is not None:
        yield "-tiles", _strip(pixels, found, title)


def _overlay(
    config: Config,
    cohort: str,
    row: object,
    found: pd.DataFrame,
    title: str,
    fingerprint: SlideFingerprint | None,
) -> Figure:
    path = Path(row.path)  # type: ignore[attr-defined]
    work = partial(_overview, config, cohort, path, row.mpp, fingerprint)  # type: ignore[attr-defined]
    thumbnail, (left, top), ratio = run_with_limits(path, config.slides.max_minutes, work)
    return attention_overlay(
        thumbnail,
        (found["x"].to_numpy() - left) / ratio,
        (found["y"].to_numpy() - top) / ratio,
        float(found["side"].iloc[0]) / ratio,
        found["attention"].to_numpy(),
        title,
    )


def _overview(
    config: Config, cohort: str, path: Path, sheet_mpp: float, fingerprint: SlideFingerprint | None
) -> tuple[np.ndarray, tuple[int, int], float]:
    """Thumbnail (h, w, 3) uint8, its upper left corner (level-0 px) and its downsample."""
    is_patches = config.cohorts[cohort].kind == "patches"
    with open_slide(path, "patches" if is_patches else config.slides.reader) as slide:
        if fingerprint is not None:
            fingerprint.require(slide.path, slide)
        if is_patches and np.isnan(sheet_mpp):
            sheet_mpp = config.tiling_of(cohort).mpp
        slide_mpp = resolve_mpp(sheet_mpp, slide)[0]
        left, top, width, height = slide.bounds_level0_px
        ratio = max(max(width, height) / LONGEST_PX, 1.0)
        return read_thumbnail(slide, ratio * slide_mpp, slide_mpp), (left, top), ratio


def _strip(pixels: Pixels, found: pd.DataFrame, title: str) -> Figure:
    ordered = found.sort_values("attention", ascending=False, kind="stable")
    count = min(STRIP, max(len(ordered) // 2, 1))
    ends = [ordered.head(count), ordered.tail(count).iloc[::-1]]
    shown = [_images(pixels, end) for end in ends]
    ranks = [end["attention"].tolist() for end in ends]
    return tile_strip(shown[0], ranks[0], shown[1], ranks[1], title)


def _images(pixels: Pixels, rows: pd.DataFrame) -> np.ndarray:
    # (k, H, W, 3) uint8 tiles of one slide, in the order of the rows.
    slide = pixels.slide_id.index(rows["slide_id"].iloc[0])
    here = np.flatnonzero(pixels.slide == slide)
    place = pd.Series(here, index=pixels.tile[here])
    return pixels.images(place.loc[rows["tile"]].to_numpy())
