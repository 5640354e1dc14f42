"""Tissue mask and tiles of one slide with another tool: prints seconds and corners as JSON.

    RIVAL_ENV/bin/python benchmarks/slides_rival.py TOOL SLIDE

TOOL is hs2p, lazyslide, histolab or tiatoolbox, installed in the environment (group `rivals`).
Imports are not counted. For the fast tools, the time is the median of three rounds in one process,
as for ours. Tiles have 256 px at 0.5 µm/px and at least half tissue (histolab: without this limit);
masks are the tools' defaults, near 8 µm/px if the tool has a choice.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

SIZE_PX, MPP, LEAST = 256, 0.5, 0.5
ROUNDS, FAST = 3, ("hs2p", "tiatoolbox")  # the others take 8 s and more
Corners = list[tuple[int, int]]


def hs2p(path: str) -> tuple[float, Corners]:
    from hs2p import FilterConfig, SegmentationConfig, SlideSpec, TilingConfig, tile_slide

    tiling = TilingConfig(
        requested_spacing_um=MPP, requested_tile_size_px=SIZE_PX, tolerance=0.05, overlap=0.0,
        backend="openslide",
    )  # fmt: skip
    start = time.perf_counter()
    found: Any = tile_slide(
        SlideSpec(sample_id="a", image_path=Path(path)),
        tiling=tiling,
        segmentation=SegmentationConfig(method="hsv", downsample=16),
        filtering=FilterConfig(),
        num_workers=1,
    )
    seconds = time.perf_counter() - start
    shares = getattr(found, "tissue_fractions", None)
    keep = [s >= LEAST for s in shares] if shares is not None else [True] * len(found.x)
    return seconds, [(int(x), int(y)) for x, y, k in zip(found.x, found.y, keep, strict=True) if k]


def lazyslide(path: str) -> tuple[float, Corners]:
    import lazyslide as zs
    from wsidata import open_wsi

    start = time.perf_counter()
    wsi = open_wsi(path, attach_thumbnail=False, store=None)
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, SIZE_PX, mpp=MPP, background_fraction=1 - LEAST)
    seconds = time.perf_counter() - start
    boxes = wsi["tiles"].geometry.bounds
    return seconds, list(zip(boxes["minx"].astype(int), boxes["miny"].astype(int), strict=True))


def histolab(path: str) -> tuple[float, Corners]:
    from histolab.masks import TissueMask
    from histolab.slide import Slide
    from histolab.tiler import GridTiler

    start = time.perf_counter()
    slide = Slide(path, "/tmp")
    tiler = GridTiler(tile_size=(SIZE_PX, SIZE_PX), level=0, check_tissue=False)
    corners = list(tiler._grid_coordinates_generator(slide, TissueMask()))
    return time.perf_counter() - start, [(int(c.x_ul), int(c.y_ul)) for c in corners]


def tiatoolbox(path: str) -> tuple[float, Corners]:
    from tiatoolbox.tools.patchextraction import SlidingWindowPatchExtractor
    from tiatoolbox.wsicore.wsireader import WSIReader

    start = time.perf_counter()
    reader = WSIReader.open(path)
    mask = reader.tissue_mask(method="otsu", resolution=8.0, units="mpp")
    found = SlidingWindowPatchExtractor(
        input_img=reader, patch_size=(SIZE_PX, SIZE_PX), resolution=MPP, units="mpp",
        input_mask=mask, min_mask_ratio=LEAST, within_bound=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return seconds, [(int(row[0]), int(row[1])) for row in found.coordinate_list]


def main() -> None:
    tool, path = sys.argv[1:]
    rounds = [globals()[tool](path) for _ in range(ROUNDS if tool in FAST else 1)]
    seconds, corners = statistics.median(seconds for seconds, _ in rounds), rounds[0][1]
    print("\n" + json.dumps({"seconds": seconds, "tiles": [list(map(int, c)) for c in corners]}))


if __name__ == "__main__":
    main()
