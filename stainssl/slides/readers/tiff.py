"""Reader `tiff`: SVS and plain TIFFs with JPEG tiles, the same pixels as OpenSlide's, but faster.

OpenSlide opens the slide and gives its levels, bounds and pixel size. Levels stored as JPEG tiles
are decoded directly: tifffile locates the tiles, libjpeg-turbo decodes them. Other levels are read
by OpenSlide. So is a tile for which libjpeg has a warning; OpenSlide refuses it as well, unless
only the end of the tile is damaged.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
import tifffile

from stainssl.errors import SlideError, Status
from stainssl.slides.errors import translate_errors
from stainssl.slides.readers import openslide as openslide_reader
from stainssl.slides.readers.jpeg import decode_tile
from stainssl.slides.readers.openslide import OpenSlideFile, cache_bytes
from stainssl.slides.slide import Slide

VENDORS = ("aperio", "generic-tiff")  # their levels are TIFF pages of plain tiles
RGB, YCBCR = 2, 6  # TIFF's photometric interpretation
JPEG = 7  # TIFF's compression


@dataclass(frozen=True)
class _Level:
    """Location of the JPEG tiles of a level in the file."""

    tile_px: tuple[int, int]  # width, height
    columns: int
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    tables: bytes | None  # `JPEGTables`, shared by all tiles
    is_rgb: bool


def _level(page: tifffile.TiffPage) -> _Level | None:
    """Tiles of a page; None if they are not complete, 8-bit, three-channel JPEG tiles."""
    is_plain = (page.bitspersample, page.samplesperpixel, page.planarconfig) == (8, 3, 1)
    is_jpeg = page.compression == JPEG and page.photometric in (RGB, YCBCR)
    if not (page.is_tiled and is_plain and is_jpeg and all(page.databytecounts)):
        return None
    columns = -(-page.imagewidth // page.tilewidth)
    rows = -(-page.imagelength // page.tilelength)
    if len(page.dataoffsets) != columns * rows:
        return None
    return _Level(
        (page.tilewidth, page.tilelength), columns, page.dataoffsets, page.databytecounts,
        page.jpegtables, page.photometric == RGB,
    )  # fmt: skip


def _levels(path: Path) -> dict[tuple[int, int], _Level]:
    """Width and height → tiles, for pages that can be decoded directly.

    Pages of the same size are left out, since only OpenSlide knows which of them is the level.
    """
    found: dict[tuple[int, int], _Level] = {}
    pages: Counter[tuple[int, int]] = Counter()
    with tifffile.TiffFile(path) as file:
        for page in file.pages:
            if not isinstance(page, tifffile.TiffPage):
                continue
            size = page.imagewidth, page.imagelength
            pages[size] += 1
            if level := _level(page):
                found[size] = level
    return {size: level for size, level in found.items() if pages[size] == 1}


def recognises(path: Path) -> bool:
    """Whether it is an SVS or plain TIFF, by OpenSlide, whose first page has JPEG tiles.

    OME-TIFF is excluded, since OpenSlide does not find its pixel size and levels.
    """
    if openslide.OpenSlide.detect_format(path) not in VENDORS:
        return False
    try:
        with tifffile.TiffFile(path) as file:
            return not file.is_ome and _level(file.pages.first) is not None
    except Exception:  # tifffile raises many kinds for a damaged directory
        return False


def open_file(path: Path) -> Slide:
    """Open a slide; if no level can be decoded directly, it is an `OpenSlideFile`.

    Raises:
        SlideError: `unsupported`, `unreadable` or `truncated`.
        OSError: the disk or mount failed.
    """
    whole = openslide_reader.open_file(path)
    with translate_errors(path, "reading the directories"):
        found = _levels(path) if whole.vendor in VENDORS else {}
    levels = [found.get(size) for size in whole.level_sizes_px]
    return TiffFile(whole, levels) if any(levels) else whole


class TiffFile(Slide):
    """A slide whose JPEG tiles are decoded directly. See `stainssl.slides.slide.Slide`."""

    reader = "tiff"

    def __init__(self, whole: OpenSlideFile, levels: list[_Level | None]) -> None:
        self.path, self.vendor = whole.path, whole.vendor
        self.level_sizes_px, self.downsamples = whole.level_sizes_px, whole.downsamples
        self.bounds_level0_px = whole.bounds_level0_px
        self.mpp_sources, self.objective_power = whole.mpp_sources, whole.objective_power
        self.anisotropy = whole.anisotropy
        self._whole, self._levels = whole, levels
        self._file = os.open(self.path, os.O_RDONLY)
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._room_bytes = cache_bytes(self.level_sizes_px[0][0], 3)

    def read_region(
        self, x_level0_px: int, y_level0_px: int, level: int, size_px: tuple[int, int]
    ) -> np.ndarray:
        """Read a rectangle of a level; see `Slide.read_region`."""
        tiles = self._levels[level]
        if tiles is None:
            return self._whole.read_region(x_level0_px, y_level0_px, level, size_px)
        left = round(x_level0_px / self.downsamples[level])
        top = round(y_level0_px / self.downsamples[level])
        where = f"reading level {level} at x {x_level0_px}, y {y_level0_px}"
        with translate_errors(self.path, where):
            index = self._only_tile(level, tiles, (left, top), size_px)
            if index is not None and (level, index) not in self._cache:
                return self._decoded(level, tiles, index)
            return self._pasted(level, tiles, left, top, size_px)

    def _only_tile(
        self, level: int, tiles: _Level, corner: tuple[int, int], size_px: tuple[int, int]
    ) -> int | None:
        """Index of the tile that equals a rectangle in level px; None if it is not just one."""
        (left, top), (wide, high) = corner, tiles.tile_px
        if size_px != tiles.tile_px or left % wide or top % high or min(corner) < 0:
            return None
        width, height = self.level_sizes_px[level]
        if left + wide > width or top + high > height:
            return None
        return top // high * tiles.columns + left // wide

    def _pasted(
        self, level: int, tiles: _Level, left: int, top: int, size_px: tuple[int, int]
    ) -> np.ndarray:
        """Assemble a rectangle in level px from the tiles that it touches; white outside."""
        (width, height), (wide, high) = self.level_sizes_px[level], tiles.tile_px
        right, bottom = min(left + size_px[0], width), min(top + size_px[1], height)
        out = np.empty((size_px[1], size_px[0], 3), np.uint8)
        if min(left, top) < 0 or (right - left, bottom - top) != size_px:
            out[:] = 255
        if left >= width or top >= height:
            return out
        for row in range(max(0, top) // high, -(-bottom // high)):
            for column in range(max(0, left) // wide, -(-right // wide)):
                x0, y0 = max(left, column * wide), max(top, row * high)
                x1, y1 = min(right, (column + 1) * wide), min(bottom, (row + 1) * high)
                is_part = (x1 - x0, y1 - y0) != tiles.tile_px
                tile = self._tile(level, tiles, row * tiles.columns + column, is_part)
                part = tile[y0 - row * high : y1 - row * high, x0 - column * wide :]
                out[y0 - top : y1 - top, x0 - left : x1 - left] = part[:, : x1 - x0]
        return out

    def _tile(self, level: int, tiles: _Level, index: int, is_part: bool) -> np.ndarray:
        """One tile (h, w, 3), from the cache or decoded.

        It is cached only if a part of it is used, as a neighbouring region will use the rest.
        """
        key = level, index
        tile = self._cache.pop(key, None)
        if tile is None:
            tile = self._decoded(level, tiles, index)
            if not is_part:
                return tile
            while self._cache and len(self._cache) * tile.nbytes >= self._room_bytes:
                self._cache.popitem(last=False)
        self._cache[key] = tile
        return tile

    def _decoded(self, level: int, tiles: _Level, index: int) -> np.ndarray:
        length = tiles.lengths[index]
        data = os.pread(self._file, length, tiles.offsets[index])
        if len(data) < length:
            raise SlideError(
                Status.TRUNCATED, f"The file ends inside tile {index}: it was cut after opening."
            )
        try:
            return decode_tile(data, tiles.tables, tiles.is_rgb, tiles.tile_px)
        except ValueError:
            return self._by_openslide(level, tiles, index)

    def _by_openslide(self, level: int, tiles: _Level, index: int) -> np.ndarray:
        """Read one tile by a new OpenSlide handle: a handle is unusable after a failed read."""
        row, column = divmod(index, tiles.columns)
        wide, high = tiles.tile_px
        corner = [round(v * self.downsamples[level]) for v in (column * wide, row * high)]
        with closing(openslide_reader.open_file(self.path)) as whole:
            return whole.read_region(corner[0], corner[1], level, tiles.tile_px)

    def close(self) -> None:
        """Close the files and clear the cache."""
        self._cache.clear()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._whole.close()
