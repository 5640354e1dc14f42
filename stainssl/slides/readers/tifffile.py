"""Reader `tifffile`: TIFFs that OpenSlide does not read as slides.

These are TIFFs in strips or big-endian tiles, images saved by Fiji and photo software, and any
compression that imagecodecs decodes. Only the strips or tiles under a region are decoded.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from stainssl.errors import SlideError, Status
from stainssl.slides.errors import translate_errors
from stainssl.slides.padding import read_padded
from stainssl.slides.pixel_size import UM_PER_UNIT, anisotropy, mean_mpp, of_resolution
from stainssl.slides.readers.jpeg import decode_tile
from stainssl.slides.readers.openslide import over_white
from stainssl.slides.slide import Slide

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RGB, PALETTE, YCBCR = 2, 3, 6  # TIFF's photometric interpretation
GRAY = (0, 1)
UNCOMPRESSED, JPEG = 1, 7  # TIFF's compression
# Compressions whose segments have a header with a size → Pillow's name of the format.
OWN_SIZE = {33003: ("JPEG2000",), 33004: ("JPEG2000",), 33005: ("JPEG2000",), 34712: ("JPEG2000",)}
OWN_SIZE |= {34933: ("PNG",), 50001: ("WEBP",), 34927: ("WEBP",)}
PLANAR = 2  # TIFF's planar configuration: channels in separate segments
REDUCED = 1  # bit of NewSubfileType: a reduced copy of another page
MAX_ASPECT_ERROR = 0.02  # relative difference of a level's aspect ratio, from rounding its size
MAX_SEGMENT_PX = 100_000_000  # a strip or tile is decoded in one piece: 300 MB
CACHE_BYTES = 256 * 2**20  # decoded segments, reused by neighbouring regions
TO_PYRAMID = (
    "convert it: vips tiffsave {name} out.tif --tile --pyramid --bigtiff --compression jpeg --Q 90"
)


def recognises(path: Path) -> bool:
    """Whether the file starts like a TIFF or BigTIFF."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in MAGIC


def open_file(path: Path) -> Slide:
    """Open a TIFF.

    Raises:
        SlideError: `unsupported` (grayscale, a stack, more than 8 bits, rotated, a compression
            without a decoder, or compressed in too large a piece) or `unreadable`.
        OSError: the disk or mount failed.
    """
    with translate_errors(path, "opening"):
        return TifffileFile(path)


@dataclass(frozen=True)
class _Level:
    """A page of the TIFF, divided into segments (strips or tiles) of one size."""

    page: tifffile.TiffPage
    size_px: tuple[int, int]  # width, height
    segment_px: tuple[int, int]
    columns: int
    per_channel: int  # segments per channel if channels are stored separately, else 0

    def rows_of(self, index: int) -> int:
        """Number of image rows in a segment; the last strip may have fewer."""
        row = (index % self.per_channel if self.per_channel else index) // self.columns
        return min(self.segment_px[1], self.size_px[1] - row * self.segment_px[1])


def _level(page: tifffile.TiffPage) -> _Level:
    width, height = page.imagewidth, page.imagelength
    segment = page.tilewidth, page.tilelength
    if not page.is_tiled:
        segment = width, min(page.rowsperstrip, height)
    columns, rows = -(-width // segment[0]), -(-height // segment[1])
    is_planar = page.planarconfig == PLANAR and page.samplesperpixel > 1
    return _Level(page, (width, height), segment, columns, columns * rows if is_planar else 0)


def _refuse(path: Path, what: str) -> SlideError:
    return SlideError(Status.UNSUPPORTED, f"{path.name} {what}.")


def _check(path: Path, page: tifffile.TiffPage) -> None:
    """Check that a page is an upright 8-bit RGB image that can be decoded.

    Raises:
        SlideError: `unsupported`, with what to do.
    """
    compression = getattr(page.compression, "name", page.compression)
    kind = f"is a TIFF of {page.imagewidth}×{page.imagelength} px ({compression}) that"
    if "Orientation" in page.tags and page.tags["Orientation"].value not in (0, 1):
        advice = "convert it: vips autorot"
        raise _refuse(path, f"{kind} is rotated or mirrored (TIFF orientation); {advice}")
    if page.photometric in GRAY:
        raise _refuse(path, f"{kind} is grayscale: stain analysis needs color")
    if page.photometric not in (RGB, YCBCR) or page.samplesperpixel not in (3, 4):
        name = getattr(page.photometric, "name", page.photometric)
        raise _refuse(
            path, f"{kind} has {page.samplesperpixel} channels ({name}), not RGB; "
            f"{TO_PYRAMID.format(name=path.name)}",
        )  # fmt: skip
    if page.dtype != np.uint8:
        raise _refuse(path, f"{kind} has {page.dtype} values: convert it to 8-bit RGB")
    try:
        page.decode(None, 0)  # an empty segment: raises if there is no decoder
    except ValueError as error:
        raise _refuse(
            path, f"{kind} cannot be read ({error}); {TO_PYRAMID.format(name=path.name)}"
        ) from None


def _check_segment(path: Path, level: _Level) -> None:
    wide, high = level.segment_px
    if wide * high > MAX_SEGMENT_PX and not _is_mapped(level.page):
        raise _refuse(
            path, f"is compressed in one piece of {wide}×{high} px, above {MAX_SEGMENT_PX:,}; "
            f"{TO_PYRAMID.format(name=path.name)}",
        )  # fmt: skip


def _is_mapped(page: tifffile.TiffPage) -> bool:
    """Whether the page is uncompressed and contiguous, so that it can be memory-mapped."""
    is_plain = page.compression == UNCOMPRESSED and page.planarconfig != PLANAR
    return bool(is_plain and page.fillorder == 1 and page.is_contiguous and not page.is_tiled)


def _pages(path: Path, file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The first page and its reduced copies, finest first.

    Raises:
        SlideError: `unsupported`, a stack of images.
    """
    first, *others = [page.aspage() for page in file.pages]
    copies = [page for page in others if page.subfiletype & REDUCED]
    stack = [p for p in others if p not in copies and p.shape == first.shape]
    images = int((file.imagej_metadata or {}).get("images", 1))
    if stack or images > 1:
        count = max(images, len(stack) + 1)
        raise _refuse(path, f"is a stack of {count} images: save each as a separate file")
    copies += [page.aspage() for page in first.pages or ()]
    aspect = first.imagewidth / first.imagelength
    fitting = [
        page
        for page in copies
        if page.imagewidth < first.imagewidth
        and abs(page.imagewidth / page.imagelength / aspect - 1) < MAX_ASPECT_ERROR
        and (page.photometric, page.dtype) == (first.photometric, first.dtype)
    ]
    return [first, *sorted(fitting, key=lambda page: -page.imagewidth)]


def _resolution(page: tifffile.TiffPage, axis: str) -> float | None:
    """Pixels per unit of length; None if the page does not state it."""
    tag = page.tags.get(f"{axis}Resolution")
    if tag is None or not tag.value[1] or not tag.value[0]:
        return None
    return float(tag.value[0] / tag.value[1])


def _unit_um(file: tifffile.TiffFile, page: tifffile.TiffPage) -> float | None:
    """µm per unit of the resolution, or None; Fiji states its unit in its own metadata."""
    word = str((file.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ")
    if word:
        return UM_PER_UNIT.get(word.strip().lower())
    tag = page.tags.get("ResolutionUnit")
    return UM_PER_UNIT.get({2: "inch", 3: "centimeter"}.get(int(tag.value), "")) if tag else None


class TifffileFile(Slide):
    """A TIFF read by tifffile. See `stainssl.slides.slide.Slide`."""

    reader = "tifffile"

    def __init__(self, path: Path) -> None:
        self.path, self.vendor = path, "tiff"
        with tifffile.TiffFile(path) as file:
            pages = _pages(path, file)
            for page in pages:
                _check(path, page)
            self._levels = [_level(page) for page in pages]
            unit_um, first = _unit_um(file, pages[0]), pages[0]
        _check_segment(path, self._levels[0])
        x, y = (of_resolution(_resolution(first, axis), unit_um) for axis in "XY")
        mpp = mean_mpp(x, y)
        self.mpp_sources = {} if mpp is None else {"tiff-resolution": mpp}
        self.anisotropy = anisotropy(x, y)
        self.objective_power: float | None = None
        self.level_sizes_px = [level.size_px for level in self._levels]
        width, height = self.level_sizes_px[0]
        self.downsamples = [(width / w + height / h) / 2 for w, h in self.level_sizes_px]
        self.bounds_level0_px = (0, 0, width, height)
        self._file = os.open(path, os.O_RDONLY)
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def read_region(
        self, x_level0_px: int, y_level0_px: int, level: int, size_px: tuple[int, int]
    ) -> np.ndarray:
        """Read a rectangle of a level; see `Slide.read_region`."""

        def read(x: int, y: int, width: int, height: int) -> np.ndarray:
            return self._inside(level, x, y, width, height)

        downsample = self.downsamples[level]
        corner = round(x_level0_px / downsample), round(y_level0_px / downsample)
        with translate_errors(
            self.path, f"reading level {level} at x {x_level0_px}, y {y_level0_px}"
        ):
            return read_padded(read, corner, size_px, self.level_sizes_px[level])

    def _inside(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a rectangle that lies completely inside the level: (h, w, 3)."""
        found = self._levels[level]
        if _is_mapped(found.page):
            return self._mapped(found, x, y, width, height)
        wide, high = found.segment_px
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // high, -(-(y + height) // high)):
            for column in range(x // wide, -(-(x + width) // wide)):
                x0, y0 = max(x, column * wide), max(y, row * high)
                x1, y1 = min(x + width, (column + 1) * wide), min(y + height, (row + 1) * high)
                segment = self._segment(level, row * found.columns + column)
                part = segment[y0 - row * high : y1 - row * high, x0 - column * wide :]
                out[y0 - y : y1 - y, x0 - x : x1 - x] = part[:, : x1 - x0]
        return out

    def _mapped(self, level: _Level, x: int, y: int, width: int, height: int) -> np.ndarray:
        shape = (*level.size_px[::-1], level.page.samplesperpixel)
        pixels = np.memmap(self.path, np.uint8, "r", level.page.dataoffsets[0], shape)
        return _color(np.array(pixels[y : y + height, x : x + width]))

    def _segment(self, level: int, index: int) -> np.ndarray:
        """One strip or tile, (h, w, 3), from the cache or decoded."""
        key = level, index
        segment = self._cache.pop(key, None)
        if segment is None:
            segment = self._decoded(self._levels[level], index)
            while self._cache and len(self._cache) * segment.nbytes >= CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache[key] = segment
        return segment

    def _decoded(self, level: _Level, index: int) -> np.ndarray:
        count = level.page.samplesperpixel if level.per_channel else 1
        parts = [self._channels(level, index + k * level.per_channel) for k in range(count)]
        return _color(np.concatenate(parts, axis=2))

    def _channels(self, level: _Level, index: int) -> np.ndarray:
        """Decode one segment of the file: (h, w, channels), one channel if they are separate.

        Raises:
            SlideError: `truncated`.
            ValueError: the segment cannot be decoded, or its header states a wrong size.
        """
        page, (wide, high) = level.page, level.segment_px
        length = page.databytecounts[index]
        data = os.pread(self._file, length, page.dataoffsets[index])
        if len(data) < length:
            raise SlideError(Status.TRUNCATED, f"The file ends inside piece {index}.")
        if not data:  # an empty segment is blank
            samples = 1 if level.per_channel else page.samplesperpixel
            return np.full((high, wide, samples), 255, np.uint8)
        rows = level.rows_of(index)
        if page.compression == JPEG and page.samplesperpixel == 3 and not level.per_channel:
            tables, is_rgb = page.jpegtables, page.photometric == RGB
            return decode_tile(data, tables, is_rgb, (wide, high if page.is_tiled else rows))
        _check_header(data, page.compression, (wide, high))
        segment, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        found = np.asarray(segment)[0]
        if found.dtype != np.uint8 or found.shape[0] < rows:
            raise ValueError(f"piece {index} is {found.shape} {found.dtype}")
        return found

    def close(self) -> None:
        """Close the file and clear the cache."""
        self._cache.clear()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _check_header(data: bytes, compression: int, size_px: tuple[int, int]) -> None:
    """Raise ValueError if the header of a JPEG 2000, PNG or WebP segment states a larger size."""
    if compression not in OWN_SIZE:
        return
    with Image.open(io.BytesIO(data), formats=OWN_SIZE[compression]) as image:
        if image.width > size_px[0] or image.height > size_px[1]:
            raise ValueError(
                f"a piece of {image.width}×{image.height} px where {size_px} should be"
            )


def _color(pixels: np.ndarray) -> np.ndarray:
    """Composite (h, w, 3 or 4) uint8 over white: (h, w, 3)."""
    return over_white(pixels) if pixels.shape[2] == 4 else pixels
