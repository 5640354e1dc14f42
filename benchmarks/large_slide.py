"""A synthetic slide of the size of a scanner's, for benchmarks.

    OMP_NUM_THREADS=1 python benchmarks/large_slide.py OUT.svs [--side 40000] [--mpp 0.5]

Pieces of 3,072 px are drawn by the demo's renderer, encoded once and placed side by side at random,
with a border of glass. The format is Aperio's: JPEG tiles of 256 px at quality 80, and levels with
downsamples 1, 4 and 16. Memory stays below 1 GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile

from stainssl.demo.plan import plan
from stainssl.demo.render import render
from stainssl.demo.scene import draw_scene

PIECE_PX, TILE_PX, QUALITY = 3072, 256, 80
DOWNSAMPLES = (1, 4, 16)
GLASS = -1


@lru_cache(maxsize=1)
def pieces(count: int, seed: int = 0) -> list[np.ndarray]:
    """Draw `count` pictures (3072, 3072, 3) uint8 of demo slides without faults, and one of glass.

    All are from one site, so that the glass has one color, and from the site with the least tinted
    glass, since some tools take a tint for tissue.
    """
    slides = [one for one in plan(seed) if not one.fault]
    clearest = min(slides, key=lambda one: np.ptp(one.site_parameters.white)).site
    chosen = [one for one in slides if one.site == clearest][:count]
    pictures = [render(draw_scene(one, seed, PIECE_PX), one, seed) for one in chosen]
    glass = np.rint(np.median([p[:16, :16].reshape(-1, 3) for p in pictures], (0, 1)))
    return [*pictures, np.full_like(pictures[0], glass.astype(np.uint8))]


def encoded(picture: np.ndarray) -> dict[tuple[int, int], bytes]:
    """Encode a picture; returns (row, column) → JPEG of the tile."""
    rows, columns = picture.shape[0] // TILE_PX, picture.shape[1] // TILE_PX
    return {
        (r, c): imagecodecs.jpeg8_encode(
            np.ascontiguousarray(
                picture[r * TILE_PX : (r + 1) * TILE_PX, c * TILE_PX : (c + 1) * TILE_PX]
            ),
            level=QUALITY,
            subsampling="422",
        )
        for r in range(rows)
        for c in range(columns)
    }


def layout(side_px: int, count: int, seed: int = 0) -> np.ndarray:
    """(n, n) int: index of the piece at each place; the border is glass if n > 2."""
    n = -(-side_px // PIECE_PX)
    found = np.random.default_rng(seed).integers(0, count, (n, n))
    if n > 2:
        found[[0, -1]] = found[:, [0, -1]] = GLASS
    return found


def level_tiles(places: np.ndarray, level: list[np.ndarray], side_px: int) -> Iterator[bytes]:
    """Yield the encoded tiles of a level row by row.

    Args:
        places: (n, n) indices into `level`.
        level: the pieces at the level's scale.
        side_px: side of the level.
    """
    piece_px = level[0].shape[0]
    if piece_px % TILE_PX == 0:
        known = [encoded(one) for one in level]
        per, tiles = piece_px // TILE_PX, -(-side_px // TILE_PX)
        for r in range(tiles):
            for c in range(tiles):
                yield known[places[r // per, c // per]][r % per, c % per]
        return
    rows = [np.hstack([level[i] for i in row]) for row in places]
    picture = np.vstack(rows)[:side_px, :side_px]
    wanted = -(-side_px // TILE_PX) * TILE_PX - side_px
    known_all = encoded(np.pad(picture, ((0, wanted), (0, wanted), (0, 0)), "edge"))
    yield from (known_all[key] for key in sorted(known_all))


def write(
    path: Path, side_px: int = 40_000, mpp: float = 0.5, count: int = 12, seed: int = 0
) -> None:
    """Write the slide, from `count` different pieces in an order given by the seed."""
    pictures = pieces(count)  # the last is of glass: index GLASS
    places = layout(side_px, len(pictures) - 1, seed)
    description = (
        f"Aperio Image Library v12.0.0\r\n{side_px}x{side_px} [0,0 {side_px}x{side_px}] "
        f"({TILE_PX}x{TILE_PX}) JPEG/RGB Q={QUALITY}|AppMag = {10 / mpp:g}|MPP = {mpp:g}"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for downsample in DOWNSAMPLES:
            share = 1 / downsample
            level = [
                cv2.resize(one, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
                for one in pictures
            ]
            side = side_px // downsample
            writer.write(
                level_tiles(places, level, side),
                shape=(side, side, 3),
                dtype="uint8",
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 1),
                compression="jpeg",
                description=description,
                metadata=None,
                software=False,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=40_000)
    parser.add_argument("--mpp", type=float, default=0.5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    write(options.out, options.side, options.mpp)


if __name__ == "__main__":
    main()
