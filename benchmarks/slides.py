"""Speed and memory of reading slides, compared with other tools on the same slide.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/slides.py SLIDE [--fine SLIDE_AT_0.25]
        [--many FOLDER_OF_SLIDES] [--rivals ENV/bin/python ...] [--tiles 3000]
        [--out slides.json]
    OMP_NUM_THREADS=1 python benchmarks/slides.py SLIDE --two-processes

SLIDE is written by `large_slide.py`. Rates are megapixels of level 0 per second on one core, as the
median of three alternating rounds. The raw rate is that of libjpeg-turbo alone, on the bytes of the
same tiles. Prints tables and writes JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import pandas as pd
import tifffile

from stainssl.errors import SlideError
from stainssl.slides import tiling
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_square, read_thumbnail
from stainssl.slides.tissue import tissue_map
from stainssl.stores.pixels import SlidePixels, decode, encode, open_pixels, write_pixels

ROUNDS, SIZE_PX, MPP, MASK_MPP = 3, 256, 0.5, 8.0
RIVALS, RIVAL_PATIENCE_S = ("hs2p", "tiatoolbox", "lazyslide", "histolab"), 120


def seconds(work: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each piece of work, alternating."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def table_of(path: Path, with_figures: bool, slide_mpp: float = MPP) -> pd.DataFrame:
    """Tiles of a slide; without figures (sharpness, color), as made by the other tools."""
    with open_slide(path) as slide:
        thumbnail = read_thumbnail(slide, MASK_MPP, slide_mpp)
        tissue = tissue_map(thumbnail, MASK_MPP)
        squares = tiling.grid(slide.bounds_level0_px, slide_mpp, MPP, SIZE_PX)
        if with_figures:
            limits = tiling.TileLimits(0.5, 0.1, 0.4)
            return tiling.tile_table(slide, slide_mpp, squares, tissue, limits)
        return tiling.candidate_tiles(slide, slide_mpp, squares, tissue)


def thumbnail_of(path: Path) -> np.ndarray:
    """The thumbnail from which the mask is computed, (h, w, 3) uint8."""
    with open_slide(path) as slide:
        return read_thumbnail(slide, MASK_MPP, MPP)


def rival(python: str, tool: str, path: Path) -> dict[str, Any] | None:
    """Seconds and tiles of another tool, or None if it is not installed or failed."""
    if subprocess.run([python, "-c", f"import {tool}"], capture_output=True).returncode:
        return None
    script = Path(__file__).with_name("slides_rival.py")
    try:
        done = subprocess.run(
            [python, str(script), tool, str(path)],
            capture_output=True, text=True, check=False, timeout=RIVAL_PATIENCE_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"{tool}: not done after {RIVAL_PATIENCE_S} s")
        return None
    if done.returncode:
        print(f"{tool} failed: {done.stderr.strip().splitlines()[-1]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def jaccard(ours: pd.DataFrame, theirs: list[list[int]]) -> float:
    """Jaccard index of two tile sets, with theirs rounded to our grid."""
    mine = set(zip(ours["x"] // SIZE_PX, ours["y"] // SIZE_PX, strict=True))
    other = {(round(x / SIZE_PX), round(y / SIZE_PX)) for x, y in theirs}
    return len(mine & other) / len(mine | other)


def mask_and_table(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds and tiles of stainssl and of every installed tool."""
    kept = table_of(path, True)
    kept = kept[kept["tissue"] >= 0.5]
    own = seconds(
        {
            "thumbnail alone": lambda: thumbnail_of(path),
            "stainssl": lambda: table_of(path, False),
            "stainssl with sharpness and color": lambda: table_of(path, True),
        }
    )
    rows: list[dict[str, Any]] = [
        {"what": name, "seconds": round(value, 2), "tiles": len(kept), "jaccard": None}
        for name, value in own.items()
    ]
    for tool in RIVALS:
        tried = (rival(python, tool, path) for python in options.rivals)
        if found := next(filter(None, tried), None):
            rows.append(
                {
                    "what": tool,
                    "seconds": round(found["seconds"], 2),
                    "tiles": len(found["tiles"]),
                    "jaccard": round(jaccard(kept, found["tiles"]), 3),
                }
            )
    return rows


def raw_work(path: Path, tiles: pd.DataFrame) -> tuple[Callable[[], None], int]:
    """A function that only decodes the level-0 JPEGs under some tiles, and their number."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages.first
        columns = -(-page.imagewidth // page.tilewidth)
        reach = range(
            round(tiles["side"].iloc[0]) // page.tilewidth
        )  # tiles lie on the JPEGs' grid
        chosen = [
            (y // page.tilelength + down) * columns + x // page.tilewidth + across
            for x, y in zip(tiles["x"], tiles["y"], strict=True)
            for down in reach
            for across in reach
        ]
        with path.open("rb") as data:
            parts = []
            for i in chosen:
                data.seek(page.dataoffsets[i])
                parts.append(data.read(page.databytecounts[i]))
        tables = page.jpegtables

    def run() -> None:
        for part in parts:
            imagecodecs.jpeg8_decode(part, tables=tables, outcolorspace=2)

    return run, len(parts)


def read_all(path: Path, tiles: pd.DataFrame) -> None:
    """Read the pixels of tiles with our reader."""
    with open_slide(path) as slide:
        for x, y, side in zip(tiles["x"], tiles["y"], tiles["side"], strict=True):
            read_square(slide, x, y, side, SIZE_PX)


def openslide_loop(path: Path, tiles: pd.DataFrame) -> None:
    """Read the pixels of tiles in a plain OpenSlide loop, resized with Pillow."""
    slide = openslide.OpenSlide(path)
    for x, y, side in zip(tiles["x"], tiles["y"], tiles["side"], strict=True):
        image = slide.read_region((int(x), int(y)), 0, (round(side), round(side))).convert("RGB")
        if image.width != SIZE_PX:
            image = image.resize((SIZE_PX, SIZE_PX))
        np.asarray(image)


def pixels_of(path: Path, slide_mpp: float, count: int) -> dict[str, Any]:
    """Rates of reading the first `count` tissue tiles."""
    tiles = table_of(path, False, slide_mpp)
    tiles = tiles[tiles["tissue"] >= 0.5].head(count)
    side = float(tiles["side"].iloc[0])
    raw, jpegs = raw_work(path, tiles)
    found = seconds(
        {
            "stainssl": lambda: read_all(path, tiles),
            "openslide loop": lambda: openslide_loop(path, tiles),
            "raw": raw,
        }
    )
    of_tiles = len(tiles) * side**2 / 1e6
    rates = {name: of_tiles / found[name] for name in ("stainssl", "openslide loop")}
    rates["raw"] = jpegs * SIZE_PX**2 / 1e6 / found["raw"]
    return {
        "slide mpp": slide_mpp,
        **{f"{name} MP/s": round(value, 1) for name, value in rates.items()},
        "to openslide": round(rates["stainssl"] / rates["openslide loop"], 2),
        "of raw": round(rates["stainssl"] / rates["raw"], 2),
    }


def store_of(path: Path, count: int) -> dict[str, Any]:
    """Size of a store of tiles, and its reading speed relative to decoding alone."""
    with open_slide(path) as slide:
        places = [(4096 + 256 * (i % 64), 4096 + 256 * (i // 64)) for i in range(count)]
        jpeg = [encode(read_square(slide, x, y, SIZE_PX, SIZE_PX)) for x, y in places]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "a.zarr"
        one = SlidePixels("a", np.arange(count, dtype=np.int32), jpeg)
        write_pixels(store, [one], size_px=SIZE_PX, mpp=MPP, settings={})
        held = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        pixels, index = open_pixels(store), np.arange(count)
        found = seconds(
            {
                "store": lambda: [pixels.images(index[i : i + 64]) for i in range(0, count, 64)],
                "decode": lambda: [decode(data) for data in jpeg],
            }
        )
    return {
        "bytes to JPEGs'": round(held / sum(map(len, jpeg)), 4),
        "read back to decoding": round(found["decode"] / found["store"], 2),
    }


def two_processes(path: Path, count: int) -> dict[str, Any]:
    """Speed-up of reading by a second process; needs two cores."""
    with open_slide(path) as slide:
        squares = tiling.grid(slide.bounds_level0_px, MPP, MPP, SIZE_PX)
    x, y = squares.corners()
    tiles = pd.DataFrame({"x": x, "y": y, "side": squares.side_level0_px}).head(2 * count)
    context = multiprocessing.get_context("fork")

    def run(shares: list[pd.DataFrame]) -> None:
        workers = [context.Process(target=read_all, args=(path, share)) for share in shares]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    halves = [tiles.iloc[::2], tiles.iloc[1::2]]
    found = seconds({"one": lambda: run([tiles]), "two": lambda: run(halves)})
    return {"two processes to one": round(found["one"] / found["two"], 2)}


def resident_gb() -> float:
    """Current resident memory of the process in GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def growth(folder: Path, count: int = 1000) -> dict[str, Any]:
    """Resident memory while `count` slides are tiled one after the other in this process."""
    held = {}
    paths = itertools.cycle(sorted(folder.iterdir()))
    for done, path in enumerate(itertools.islice(paths, count), 1):
        with contextlib.suppress(SlideError):  # unreadable slides must not leak either
            table_of(path, True)
        if done in (100, count // 2, count):
            held[f"GB after {done} slides"] = round(resident_gb(), 3)
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--fine", type=Path)
    parser.add_argument("--many", type=Path)
    parser.add_argument("--two-processes", action="store_true")
    parser.add_argument("--rivals", nargs="*", default=[], help="Pythons that have the tools")
    parser.add_argument("--tiles", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("slides.json"))
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.two_processes:
        print(two_processes(options.slide, options.tiles))
        return
    found: dict[str, Any] = {"mask and table": mask_and_table(options.slide, options)}
    print(pd.DataFrame(found["mask and table"]).to_string(index=False))
    found["pixels"] = [pixels_of(options.slide, MPP, options.tiles)]
    if options.fine:
        found["pixels"].append(pixels_of(options.fine, MPP / 2, options.tiles // 4))
    print(pd.DataFrame(found["pixels"]).T.to_string())
    found["store"] = store_of(options.slide, min(1024, options.tiles))
    if options.many:
        found["growth"] = growth(options.many)
        print(found["growth"])
    found["most resident GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print({key: found[key] for key in ("store", "most resident GB")})
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
