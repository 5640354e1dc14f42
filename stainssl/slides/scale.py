"""Reading at an exact pixel size: the pixel size of a slide, and resampling of regions.

Coordinates are in level-0 px (also fractions), px of a level, or px of the result. Whatever the
downsample of the level that is read, the result has the requested pixel size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import cv2
import numpy as np
from PIL import Image
from scipy import sparse

from stainssl.errors import SlideError, Status
from stainssl.runtime.parallel import parallel_map
from stainssl.slides.pixel_size import INCH_UM, MAX_ANISOTROPY, is_print
from stainssl.slides.slide import Slide

MIN_MPP, MAX_MPP = 0.05, 50.0  # µm/px outside which a pixel size cannot be right
MAX_DIFFERENCE = 0.10  # relative difference of two sources from which it is reported
COARSER_BY = 1.02  # tolerance for a level that is too coarse: TCGA's level 1 is 2.0005, not 2
AREA_FROM = 1.25  # level px per result px from which area averaging is sharp; bicubic below
MAX_THUMBNAIL_PX = 200_000_000  # 600 MB; a slide of 75 × 50 mm at 8 µm/px has 59 million
READ_PX = 2048  # side of the largest region that is read at once, in level px: 12 MB
THUMBNAIL_READ_PX = 1024  # the same for thumbnails: small ones are also shared among threads


def _differences(source: str, mpp: float, others: Mapping[str, float]) -> str:
    far = [
        f"{name} says {other:.4g}"
        for name, other in others.items()
        if name != source and abs(other - mpp) > MAX_DIFFERENCE * mpp
    ]
    return f"Pixel size {mpp:.4g} µm/px taken from {source}; {', '.join(far)}." if far else ""


def _usable(sources: Mapping[str, float]) -> dict[str, float]:
    """Drop a TIFF resolution that is a print resolution from the sources."""
    return {
        name: mpp for name, mpp in sources.items() if name != "tiff-resolution" or not is_print(mpp)
    }


def _no_mpp(sources: Mapping[str, float]) -> SlideError:
    """Create the error for a slide without a usable source."""
    mend = "write the true pixel size in the sheet's column mpp."
    if not sources:
        return SlideError(Status.NO_MPP, f"The slide has no pixel size: {mend}")
    mpp = sources["tiff-resolution"]
    return SlideError(
        Status.ABSURD_MPP,
        f"The TIFF's {INCH_UM / mpp:,.0f} dpi ({mpp:.4g} µm/px) is a print resolution: {mend}",
    )


def check_enlargement(slide_mpp: float, mpp: float, most: float) -> str:
    """Check whether tiles enlarge the slide, i.e. are finer than level 0.

    Args:
        slide_mpp: µm/px of level 0.
        mpp: µm/px of the tiles.
        most: largest enlargement.

    Returns:
        A message if they enlarge it by more than 2 %, otherwise "".

    Raises:
        SlideError: `too-coarse` if the enlargement is above `most`.
    """
    times = slide_mpp / mpp
    if times <= COARSER_BY:
        return ""
    said = f"The slide has {slide_mpp:.4g} µm/px, tiles of {mpp:g} enlarge it {times:.3g} times"
    if times > most:
        raise SlideError(
            Status.TOO_COARSE,
            f"{said}, above the tiling's max_enlargement {most:g}. Use a tiling with a coarser "
            "mpp, or raise the limit.",
        )
    return f"{said}."


def resolve_mpp(sheet_mpp: float | None, slide: Slide) -> tuple[float, str, str]:
    """Determine the pixel size of level 0: the sheet's, otherwise the slide's first source.

    Args:
        sheet_mpp: µm/px in the sheet; None or NaN if not given.
        slide: open slide, whose `mpp_sources` are used in their order.

    Returns:
        µm/px; name of the source ("sheet", "format", "tiff-resolution", "objective-power"); a
        message if another source differs by more than 10 %, otherwise "".

    Raises:
        SlideError: `no-mpp`; or `absurd-mpp` for a pixel size outside 0.05–50 µm/px, a print
            resolution, or pixels that are not square.
    """
    sources = _usable(slide.mpp_sources)
    if sheet_mpp is not None and not math.isnan(sheet_mpp):
        sources = {"sheet": float(sheet_mpp), **sources}
    source, mpp = next(iter(sources.items()), (None, None))
    if source is None or mpp is None:
        raise _no_mpp(slide.mpp_sources)
    if source != "sheet" and slide.anisotropy > MAX_ANISOTROPY:
        raise SlideError(
            Status.ABSURD_MPP,
            f"{source} gives x and y pixel sizes that differ {slide.anisotropy:.3g}-fold: only "
            "square pixels are supported. Resample the slide, or, if the file is wrong, write the "
            "true size in the sheet's column mpp.",
        )
    if not MIN_MPP <= mpp <= MAX_MPP:
        raise SlideError(
            Status.ABSURD_MPP,
            f"{source} says {mpp:.4g} µm/px, outside {MIN_MPP}–{MAX_MPP:g}: "
            "write the true pixel size in the sheet's column mpp.",
        )
    return mpp, source, _differences(source, mpp, sources)


def level_for(downsamples: list[float], level0_px_per_px: float) -> int:
    """Index of the coarsest level that is no coarser than requested (2 % tolerance), or 0."""
    fine = [i for i, d in enumerate(downsamples) if d <= level0_px_per_px * COARSER_BY]
    return max(fine, key=lambda i: downsamples[i], default=0)


def _area_weights(start: float, stop: float, size_px: int, source_px: int) -> sparse.csr_array:
    """(size_px, source_px) weights of the source px in each result px of [start, stop)."""
    edges = np.linspace(start, stop, size_px + 1)
    taps = math.ceil((stop - start) / size_px) + 1
    column = np.floor(edges[:-1, None]).astype(np.int64) + np.arange(taps)
    covered = np.minimum(edges[1:, None], column + 1) - np.maximum(edges[:-1, None], column)
    covered = np.clip(covered, 0, None)
    weight = (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)
    row = np.repeat(np.arange(size_px), taps)
    column = np.clip(column, 0, source_px - 1)
    return sparse.csr_array((weight.ravel(), (row, column.ravel())), shape=(size_px, source_px))


def _area(
    image: np.ndarray, box: tuple[float, float, float, float], size_px: tuple[int, int]
) -> np.ndarray:
    x0, y0, x1, y1 = box
    height, width = image.shape[:2]
    down = _area_weights(y0, y1, size_px[1], height)
    across = _area_weights(x0, x1, size_px[0], width)
    rows = (down @ image.reshape(height, -1).astype(np.float32)).reshape(-1, width, 3)
    columns = across @ np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(width, -1)
    out = columns.reshape(size_px[0], size_px[1], 3).transpose(1, 0, 2)
    return np.ascontiguousarray(np.rint(out).astype(np.uint8))


def resample(
    image: np.ndarray, box: tuple[float, float, float, float], size_px: tuple[int, int]
) -> np.ndarray:
    """Resample a rectangle of an image to another size, exact to fractions of a pixel.

    Downsampling by 1.25 or more averages over the exact area of each result px. Otherwise Pillow's
    bicubic filter is used, which stays sharp at any offset between the two pixel grids.

    Args:
        image: (H, W, 3) uint8.
        box: x0, y0, x1, y1 in px of the image, inside it.
        size_px: width and height of the result.

    Returns:
        (h, w, 3) uint8.
    """
    x0, y0, x1, y1 = box
    scale = min((x1 - x0) / size_px[0], (y1 - y0) / size_px[1]) + 1e-9  # rounding error
    if all(abs(edge - round(edge)) < 1e-6 for edge in box):
        crop = image[round(y0) : round(y1), round(x0) : round(x1)]
        if crop.shape[:2] == size_px[::-1]:
            return np.ascontiguousarray(crop)
        if scale >= AREA_FROM:  # the same average as `_area`, but faster on whole pixels
            return cv2.resize(crop, size_px, interpolation=cv2.INTER_AREA)
    if scale >= AREA_FROM:
        return _area(image, box, size_px)
    return np.array(Image.fromarray(image).resize(size_px, Image.Resampling.BICUBIC, box=box))


def _read_span(start: float, stop: float, downsample: float, level_px: int) -> tuple[int, int, int]:
    """Start in level-0 px, and numbers of level px that exist and that are needed, of one axis."""
    first = math.floor(start / downsample + 1e-9)
    start_level0_px = round(first * downsample)  # at most half a level-0 px off the level px
    wanted = math.ceil(stop / downsample - 1e-9) - first
    there = level_px - first
    return start_level0_px, max(1, min(wanted, there)), max(1, wanted)


def read_rectangle(
    slide: Slide,
    x_level0_px: float,
    y_level0_px: float,
    size_level0_px: tuple[float, float],
    size_px: tuple[int, int],
) -> np.ndarray:
    """Read a rectangle of a slide at an exact size, from the next finer level.

    Args:
        slide: open slide.
        x_level0_px, y_level0_px: top left corner, may be fractions, not below 0.
        size_level0_px: width and height in level-0 px, may be fractions.
        size_px: width and height of the result.

    Returns:
        (h, w, 3) uint8 RGB. Beyond the right or bottom edge of the level, which may be smaller
        than level 0 by a fraction of its px, the last px is repeated.

    Raises:
        SlideError, OSError: as `Slide.read_region`.
    """
    width, height = size_level0_px
    level = level_for(slide.downsamples, min(width / size_px[0], height / size_px[1]))
    downsample = slide.downsamples[level]
    level_width, level_height = slide.level_sizes_px[level]
    left, there_x, wanted_x = _read_span(x_level0_px, x_level0_px + width, downsample, level_width)
    top, there_y, wanted_y = _read_span(y_level0_px, y_level0_px + height, downsample, level_height)
    image = slide.read_region(left, top, level, (there_x, there_y))
    if (there_x, there_y) != (wanted_x, wanted_y):
        image = np.pad(image, ((0, wanted_y - there_y), (0, wanted_x - there_x), (0, 0)), "edge")
    x0 = max(0.0, (x_level0_px - left) / downsample)
    y0 = max(0.0, (y_level0_px - top) / downsample)
    x1 = min(x0 + width / downsample, float(wanted_x))
    y1 = min(y0 + height / downsample, float(wanted_y))
    return resample(image, (x0, y0, x1, y1), size_px)


def read_square(
    slide: Slide, x_level0_px: int, y_level0_px: int, side_level0_px: float, size_px: int
) -> np.ndarray:
    """Read a tile by the columns `x`, `y`, `side` of the tiles table.

    `side` determines the pixel size, so that neither the slide's nor the tiling's is needed.

    Returns:
        (size_px, size_px, 3) uint8 RGB.

    Raises:
        SlideError, OSError: as `Slide.read_region`.
    """
    side = (side_level0_px, side_level0_px)
    return read_rectangle(slide, x_level0_px, y_level0_px, side, (size_px, size_px))


def blocks(size_px: tuple[int, int], block_px: int) -> Iterator[tuple[slice, slice]]:
    """Yield (rows, columns) slices that cover a (width, height) image in squares of `block_px`."""
    width, height = size_px
    for top in range(0, height, block_px):
        for left in range(0, width, block_px):
            rows = slice(top, min(top + block_px, height))
            yield rows, slice(left, min(left + block_px, width))


def read_thumbnail(slide: Slide, mpp: float, slide_mpp: float) -> np.ndarray:
    """Read the scanned bounds of a slide at an exact pixel size, in blocks of bounded memory.

    Args:
        slide: open slide; `slide.readers` blocks are read in parallel.
        mpp: µm/px of the result.
        slide_mpp: µm/px of level 0.

    Returns:
        (h, w, 3) uint8 RGB with its origin at the corner of the bounds; the last row and column
        may extend beyond the bounds by less than a px.

    Raises:
        SlideError: `unreadable` if the result would have more than 200 million px; otherwise as
            `Slide.read_region`.
        OSError: as `Slide.read_region`.
    """
    x, y, width, height = slide.bounds_level0_px
    ratio = mpp / slide_mpp
    size_px = math.ceil(width / ratio - 1e-6), math.ceil(height / ratio - 1e-6)
    if size_px[0] * size_px[1] > MAX_THUMBNAIL_PX:
        raise SlideError(
            Status.UNREADABLE,
            f"By its pixel size the slide is {width * slide_mpp / 1e3:,.0f} × "
            f"{height * slide_mpp / 1e3:,.0f} mm: its overview at {mpp:.3g} µm/px would have more "
            f"than {MAX_THUMBNAIL_PX:,} px. Check the pixel size.",
        )
    level = level_for(slide.downsamples, ratio)
    block_px = max(1, math.floor(THUMBNAIL_READ_PX * slide.downsamples[level] / ratio))
    out = np.empty((size_px[1], size_px[0], 3), np.uint8)

    def work(place: tuple[slice, slice]) -> None:
        rows, columns = place
        block = columns.stop - columns.start, rows.stop - rows.start
        out[rows, columns] = read_rectangle(
            slide,
            x + columns.start * ratio,
            y + rows.start * ratio,
            (block[0] * ratio, block[1] * ratio),
            block,
        )

    for _ in parallel_map(work, blocks(size_px, block_px), slide.readers):
        pass
    return out
