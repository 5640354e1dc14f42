"""Reader `openslide`: SVS, NDPI, MRXS, SCN, BIF, DICOM, Philips and tiled TIFF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide

from stainssl.slides.errors import translate_errors
from stainssl.slides.pixel_size import UM_PER_UNIT, anisotropy, mean_mpp, of_resolution
from stainssl.slides.slide import Slide

UM_OBJECTIVE_POWER = 10.0  # µm/px times objective power: 10x is taken as 1 µm/px, 40x as 0.25
MIN_CACHE_BYTES, MAX_CACHE_BYTES = 32 * 2**20, 256 * 2**20
CACHE_ROW_PX = 2.5 * 256  # rows of px cached, so that reading by rows reuses the row of tiles above
_WHITE = np.float32(255)


def cache_bytes(width_px: int, bytes_per_px: int) -> int:
    """Size of the cache of decoded tiles for a slide of some width, in bytes: 32–256 MiB."""
    wanted = int(width_px * CACHE_ROW_PX * bytes_per_px)
    return min(max(wanted, MIN_CACHE_BYTES), MAX_CACHE_BYTES)


def recognises(path: Path) -> bool:
    """Whether OpenSlide detects the file's format."""
    return openslide.OpenSlide.detect_format(path) is not None


def open_file(path: Path) -> OpenSlideFile:
    """Open a slide.

    Raises:
        SlideError: `unsupported`, `unreadable` or `truncated`.
        OSError: the disk or mount failed.
    """
    with translate_errors(path, "opening"):
        return OpenSlideFile(path, openslide.OpenSlide(path))


def _number(properties: Mapping[str, str], key: str) -> float | None:
    try:
        value = float(properties[key])
    except (KeyError, ValueError):
        return None
    return value if np.isfinite(value) and value > 0 else None


def _own_mpp(properties: Mapping[str, str]) -> tuple[float | None, float | None]:
    """µm/px of x and y by OpenSlide's own properties."""
    return _number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y")


def _tiff_mpp(properties: Mapping[str, str]) -> tuple[float | None, float | None]:
    """µm/px of x and y by the TIFF resolution tags."""
    unit_um = UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""))
    x, y = (of_resolution(_number(properties, f"tiff.{a}Resolution"), unit_um) for a in "XY")
    return x, y


def mpp_sources(properties: Mapping[str, str], vendor: str) -> dict[str, float]:
    """Collect the level-0 pixel sizes in OpenSlide's properties, most reliable source first.

    Args:
        properties: properties of an OpenSlide handle.
        vendor: vendor of the slide; for `generic-tiff`, OpenSlide's mpp is the TIFF resolution.

    Returns:
        "format", "tiff-resolution", "objective-power" → µm/px, the mean of x and y; only sources
        that are present.
    """
    power = _number(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER)
    found = {
        "format": None if vendor == "generic-tiff" else mean_mpp(*_own_mpp(properties)),
        "tiff-resolution": mean_mpp(*_tiff_mpp(properties)),
        "objective-power": UM_OBJECTIVE_POWER / power if power else None,
    }
    return {source: mpp for source, mpp in found.items() if mpp is not None}


def _bounds(properties: Mapping[str, str], size_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """Scanned bounds (of MRXS, for example), clipped to the slide."""
    keys = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    if any(key not in properties for key in keys):
        return 0, 0, *size_px
    x, y, width, height = (int(properties[key]) for key in keys)
    x, y = max(0, x), max(0, y)
    return x, y, min(width, size_px[0] - x), min(height, size_px[1] - y)


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Composite straight-alpha RGBA (h, w, 4) uint8 over white: (h, w, 3) uint8."""
    alpha = rgba[..., 3]
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    share = alpha[..., None].astype(np.float32) / _WHITE
    return np.rint(rgba[..., :3] * share + _WHITE * (1 - share)).astype(np.uint8)


class OpenSlideFile(Slide):
    """A slide opened by OpenSlide. See `stainssl.slides.slide.Slide`."""

    reader = "openslide"

    def __init__(self, path: Path, handle: openslide.OpenSlide) -> None:
        self.path = path
        self._handle = handle
        handle.set_cache(openslide.OpenSlideCache(cache_bytes(handle.dimensions[0], 4)))
        properties = handle.properties
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "")
        self.level_sizes_px = list(handle.level_dimensions)
        self.downsamples = list(handle.level_downsamples)
        self.objective_power = _number(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER)
        self.mpp_sources = mpp_sources(properties, self.vendor)
        axes = _tiff_mpp if next(iter(self.mpp_sources), "") == "tiff-resolution" else _own_mpp
        self.anisotropy = anisotropy(*axes(properties))
        self.bounds_level0_px = _bounds(properties, handle.dimensions)

    def read_region(
        self, x_level0_px: int, y_level0_px: int, level: int, size_px: tuple[int, int]
    ) -> np.ndarray:
        """Read a rectangle of a level; see `Slide.read_region`.

        After a failed read an OpenSlide handle is unusable: every later read fails, too.
        """
        where = f"reading level {level} at x {x_level0_px}, y {y_level0_px}"
        with translate_errors(self.path, where):
            image = self._handle.read_region((x_level0_px, y_level0_px), level, size_px)
        return over_white(np.asarray(image))

    def close(self) -> None:
        """Free the handle."""
        self._handle.close()
