"""Gain of `slides.staging` on slow storage: tiles read in place, and from a staged copy.

    PYTHONPATH=.:FOLDER_WITH_MFUSEPY python benchmarks/staging.py SLIDE [--tiles 3000]
        [--latency-ms 5] [--mb-per-s 100]

The slow storage is a folder mounted by FUSE (mfusepy, group `rivals`), which adds the latency to
every read and limits the rate. The kernel requests up to 128 kB per read.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.slides import SIZE_PX, table_of
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_square
from stainssl.slides.staging import staged


def serve(source: Path, mount: Path, latency_s: float, bytes_per_s: float) -> None:
    """Mount `source` read-only and slowed down at `mount`; returns when it is unmounted."""
    import mfusepy

    class Slow(mfusepy.Operations):
        def getattr(self, path: str, fh: int | None = None) -> dict[str, float]:
            found = os.lstat(source / path[1:])
            names = ("st_mode", "st_size", "st_nlink", "st_mtime", "st_uid", "st_gid")
            return {name: getattr(found, name) for name in names}

        def open(self, path: str, flags: int) -> int:
            return os.open(source / path[1:], os.O_RDONLY)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            time.sleep(latency_s + size / bytes_per_s)
            return os.pread(fh, size, offset)

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

    mfusepy.FUSE(Slow(), str(mount), foreground=True, ro=True, nothreads=False, direct_io=False)


def tiles_of(path: Path, count: int) -> pd.DataFrame:
    """About `count` tiles, spread over the slide."""
    tiles = table_of(path, False)
    return tiles.iloc[:: max(1, len(tiles) // count)]


def seconds(path: Path, tiles: pd.DataFrame, folder: Path | None) -> float:
    """Seconds to read the tiles of a slide, staged in `folder` unless it is None."""
    start = time.perf_counter()
    with staged(path, folder, 1 << 40) as place, open_slide(place) as slide:
        for x, y, side in zip(tiles["x"], tiles["y"], tiles["side"], strict=True):
            read_square(slide, x, y, side, SIZE_PX)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--tiles", type=int, default=3000)
    parser.add_argument("--latency-ms", type=float, default=5.0)
    parser.add_argument("--mb-per-s", type=float, default=100.0)
    given = parser.parse_args()
    tiles = tiles_of(given.slide, given.tiles)
    with tempfile.TemporaryDirectory() as mount, tempfile.TemporaryDirectory() as folder:
        rates = given.latency_ms / 1e3, given.mb_per_s * 1e6
        server = multiprocessing.Process(
            target=serve, args=(given.slide.parent, Path(mount), *rates), daemon=True
        )
        server.start()
        while not os.path.ismount(mount):
            time.sleep(0.05)
        try:
            far = Path(mount) / given.slide.name
            found = {
                "fast storage": seconds(given.slide, tiles, None),
                "slow storage, staged": seconds(far, tiles, Path(folder)),
            }
            subprocess.run(["sh", "-c", "echo 1 > /proc/sys/vm/drop_caches"], check=False)
            found["slow storage, read where it is"] = seconds(far, tiles, None)
        finally:
            subprocess.run(["fusermount3", "-u", mount], check=False)
    print(f"{len(tiles)} tiles")
    for what, value in found.items():
        print(f"{what:32} {value:.1f} s")


if __name__ == "__main__":
    main()
