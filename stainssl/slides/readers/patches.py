"""Reader `patches`: an image file (Pillow) or an image of an HDF5 file, as a slide of one level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stainssl.errors import SlideError, Status
from stainssl.slides.errors import translate_errors
from stainssl.slides.hdf5_patch import is_hdf5_patch, read_picture
from stainssl.slides.slide import Slide

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
AUTO_FORMATS = ("PNG", "JPEG", "BMP")  # not TIFF: one that OpenSlide refuses is another reader's
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")  # at most 8 bits per channel
MAX_PIXELS = 100_000_000  # the whole image is kept in memory: 300 MB


def recognises(path: Path) -> bool:
    """Whether the path is a PNG, JPEG or BMP file, or an image of an HDF5 file."""
    if is_hdf5_patch(path):
        return True
    if not path.is_file():
        return False
    try:
        with Image.open(path, formats=AUTO_FORMATS):
            return True
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return False


def _refuse(image: Image.Image, path: Path) -> None:
    if image.mode not in MODES:
        raise SlideError(
            Status.UNSUPPORTED, f"{path.name} has mode {image.mode}: only 8-bit RGB is supported."
        )
    if image.width * image.height > MAX_PIXELS:
        raise SlideError(
            Status.UNSUPPORTED,
            f"{path.name} is one image of {image.width}×{image.height} px, above "
            f"{MAX_PIXELS:,}: convert it to a pyramid.",
        )


def _white_backed(image: Image.Image) -> np.ndarray:
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    rgba = image.convert("RGBA")
    backed = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    backed.alpha_composite(rgba)
    return np.array(backed.convert("RGB"))


def open_file(path: Path) -> PatchFile:
    """Read an image file, or one image of an HDF5 file, into memory.

    Raises:
        SlideError: `unsupported` (not an image, more than 8 bits, too large), `truncated` or
            `unreadable`.
        OSError: the disk or mount failed.
    """
    with translate_errors(path, "opening"):
        if is_hdf5_patch(path):
            return PatchFile(path, "hdf5", read_picture(path))
        try:
            image = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            raise SlideError(Status.UNSUPPORTED, f"{path.name} is not an image file.") from None
        except Image.DecompressionBombError as error:
            raise SlideError(Status.UNSUPPORTED, f"{path.name}: {error}") from None
        with image:
            _refuse(image, path)
            # Cameras store the rotation in the EXIF data, not in the pixels.
            upright = ImageOps.exif_transpose(image)
            return PatchFile(path, image.format or "", _white_backed(upright))


class PatchFile(Slide):
    """An image in memory. See `stainssl.slides.slide.Slide`."""

    reader = "patches"

    def __init__(self, path: Path, file_format: str, pixels: np.ndarray) -> None:
        self.path = path
        self.vendor = file_format.lower()
        self._pixels = pixels
        height, width = pixels.shape[:2]
        self.level_sizes_px = [(width, height)]
        self.downsamples = [1.0]
        self.bounds_level0_px = (0, 0, width, height)
        # The resolution stated by a PNG or JPEG is that of a screen or printer.
        self.mpp_sources: dict[str, float] = {}
        self.objective_power: float | None = None

    def read_region(
        self, x_level0_px: int, y_level0_px: int, level: int, size_px: tuple[int, int]
    ) -> np.ndarray:
        """Read a rectangle of the image; see `Slide.read_region`."""
        if level != 0:
            raise ValueError(f"a patch has only level 0, not level {level}")
        width, height = size_px
        out = np.full((height, width, 3), 255, np.uint8)
        x, y = max(0, x_level0_px), max(0, y_level0_px)
        part = self._pixels[y : max(0, y_level0_px + height), x : max(0, x_level0_px + width)]
        top, left = y - y_level0_px, x - x_level0_px
        out[top : top + part.shape[0], left : left + part.shape[1]] = part
        return out

    def close(self) -> None:
        """Free the pixels."""
        self._pixels = self._pixels[:0]
